"""Looks at all workers every second: who belongs to them, how much memory they take, whether they stall."""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from rolecall.guard import probe
from rolecall.guard.children import Children
from rolecall.guard.metrics import Counts
from rolecall.guard.oom import OomWatch
from rolecall.guard.ownership import Census
from rolecall.guard.stall import Resumed, Stalled, StallWatch
from rolecall.guard.table import Record, State, Table
from rolecall.protocol import events

Tell = Callable[[events.Event], None]
Spawn = Callable[[Coroutine[Any, Any, Any]], None]

DUMPS = 4  # stacks read at the same time, when many workers stall together


@dataclass(slots=True)
class _Watch:
    """One worker's policy, and the order in which its changes are told: evidence takes its time."""

    policy: StallWatch
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)


class Watcher:
    """Keeps what must be known before a worker dies: its processes, its memory, the kernel's counters.

    Args:
        tell: Sends a notification to the controller.
        spawn_task: Runs a coroutine beside the watching, which evidence must not hold up.
        stall_s: See `GuardConfig.stall_s`.
    """

    def __init__(
        self, table: Table, children: Children, counts: Counts, tell: Tell, spawn_task: Spawn, stall_s: float
    ) -> None:
        self._table, self._children, self._counts = table, children, counts
        self._tell, self._spawn_task, self._stall_s = tell, spawn_task, stall_s
        self._watches: dict[Record, _Watch] = {}
        self._dumps = asyncio.Semaphore(DUMPS)
        self.oom = OomWatch()

    async def look(self) -> None:
        """One look at everything."""
        self.oom.look()
        await self._census()
        living = [record for record in self._table if record.state is not State.ENDING]
        self._watches = {record: self._watches.get(record) or _Watch(StallWatch(self._stall_s)) for record in living}
        for record, watch in self._watches.items():
            sample = probe.sample(record)
            change = watch.policy.see(sample) if sample else None
            if change is not None:
                self._spawn_task(self._tell_change(record, change, watch.turn))

    async def _census(self) -> None:
        census = await asyncio.to_thread(Census)
        for record in self._table:
            if record.process is not None and record.state is not State.ENDING:  # then it is the killer who keeps count
                owned = census.owned(record.worker_id, record.process, record.tracked)
                record.tracked = owned
                record.rss = sum(census.table[process.pid].rss for process in owned)

    async def _tell_change(self, record: Record, change: Stalled | Resumed, turn: asyncio.Lock) -> None:
        async with turn:
            if isinstance(change, Resumed):
                if record.state is State.READY:
                    self._tell(events.Resumed(worker=record.worker_id))
                return
            self._counts.stalls += 1
            async with self._dumps:
                stacks = await probe.stacks(record, self._children)
            if record.state is State.STARTING and change.kind == "stopped":
                record.stall = f"{change.reason}\n{stacks}"
                record.stalled.set()  # the start tells it
                return
            if record.state is not State.READY or record.process is None:
                return  # it ended meanwhile, which is told otherwise
            stalled = events.Stalled(
                worker=record.worker_id, pid=record.process.pid, kind=change.kind, reason=change.reason, stacks=stacks
            )
            self._tell(stalled)
