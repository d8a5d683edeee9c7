"""Samples all workers every second: which processes are theirs, how much memory they use, whether they stall."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from rolecall.guard import probe
from rolecall.guard.children import Children
from rolecall.guard.claims import note_seen
from rolecall.guard.descendants import Descendants
from rolecall.guard.health import HealthChecks
from rolecall.guard.metrics import Counts
from rolecall.guard.oom import OomWatch
from rolecall.guard.proc import Process
from rolecall.guard.stall import Resumed, Stalled, StallWatch
from rolecall.guard.table import Record, State, Table
from rolecall.protocol import events
from rolecall.protocol.guard_config import GuardConfig

Notify = Callable[[events.Event], None]
Spawn = Callable[[Coroutine[Any, Any, Any]], None]

MAX_STACK_DUMPS = 4  # stacks read at the same time, when many workers stall together


class Watcher:
    """Records what can no longer be read when a worker has died: its processes, its memory, the kernel's counters.

    Args:
        notify: Notifies the controller of an event.
        spawn_task: Runs a coroutine concurrently, since reading stacks takes seconds.
    """

    def __init__(
        self,
        config: GuardConfig,
        table: Table,
        children: Children,
        counts: Counts,
        notify: Notify,
        spawn_task: Spawn,
    ) -> None:
        self._config, self._table, self._children, self._counts = config, table, children, counts
        self._notify, self._spawn_task = notify, spawn_task
        self._health = HealthChecks(config.ip, spawn_task)
        # For each worker its policy, and a lock that keeps its events in order while stacks are read.
        self._watches: dict[Record, tuple[StallWatch, asyncio.Lock]] = {}
        self._stack_dumps = asyncio.Semaphore(MAX_STACK_DUMPS)
        self._noted: set[Process] = set()
        self.oom = OomWatch()

    async def look(self) -> None:
        """Samples everything once."""
        self.oom.look()
        await self._attribute()
        living = [record for record in self._table if record.state is not State.ENDING]
        self._health.poll(living)
        known = self._watches
        self._watches = {record: known.get(record) or (self._new_policy(), asyncio.Lock()) for record in living}
        for record, (policy, lock) in self._watches.items():
            sample = probe.sample(record)
            change = policy.add(sample) if sample else None
            if change is not None:
                self._spawn_task(self._report(record, change, lock))

    def _new_policy(self) -> StallWatch:
        return StallWatch(self._config.stall_s, self._config.silence_s)

    async def _attribute(self) -> None:
        descendants = await asyncio.to_thread(Descendants)
        for record in self._table:
            if record.process is not None and record.state is not State.ENDING:  # else the killer tracks its processes
                owned = descendants.owned(record)
                record.tracked = owned
                record.rss = sum(descendants.by_pid[process.pid].rss for process in owned)
        if descendants.unmarked != self._noted:
            self._noted = descendants.unmarked
            await asyncio.to_thread(note_seen, self._config.runtime_dir, self._config.guard_id, self._noted)

    async def _report(self, record: Record, change: Stalled | Resumed, lock: asyncio.Lock) -> None:
        async with lock:
            if isinstance(change, Resumed):
                if record.state is State.READY:
                    self._notify(events.Resumed(worker=record.worker_id))
                return
            self._counts["stalls_total"] += 1
            async with self._stack_dumps:
                stacks = await probe.stacks(record, self._children)
            if record.state is State.STARTING and change.kind == "stopped":
                record.stall = f"{change.reason}\n{stacks}"
                record.abort.set()  # the start fails with it
                return
            if record.state is not State.READY or record.process is None:
                return  # it has ended meanwhile, which is an event of its own
            stalled = events.Stalled(
                worker=record.worker_id, pid=record.process.pid, kind=change.kind, reason=change.reason, stacks=stacks
            )
            self._notify(stalled)
