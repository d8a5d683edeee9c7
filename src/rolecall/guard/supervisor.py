"""Starts, watches and kills the workers of a guard, reports their deaths, and leaves no process behind."""

import asyncio
import logging
import os
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from rolecall.guard import logs, probe, runtime
from rolecall.guard.children import Children, Exit
from rolecall.guard.claims import note_seen
from rolecall.guard.descendants import Descendants
from rolecall.guard.killer import Killer
from rolecall.guard.launcher import Launcher
from rolecall.guard.lease import Lease
from rolecall.guard.oom import OomWatch
from rolecall.guard.ports import PortLeases
from rolecall.guard.proc import Process, kill_below
from rolecall.guard.programs import HealthChecks, post
from rolecall.guard.stall import Resumed, Stalled, StallWatch
from rolecall.guard.sweep import sweep
from rolecall.guard.table import Record, State, Table
from rolecall.guard.template_process import TemplateProcess
from rolecall.protocol import events
from rolecall.protocol.environment import inheritable, marks
from rolecall.protocol.guard import KillReport, Ports
from rolecall.protocol.guard_config import GuardConfig
from rolecall.protocol.worker_methods import SET_ENV, SetEnv
from rolecall.transport.files import FileThread
from rolecall.transport.http.metrics import Metric, counter, gauge
from rolecall.transport.peer import Handler
from rolecall.transport.threads import in_thread
from rolecall.types import check_env

STRAYS_S = 5.0
MERGE_S = 5.0  # for the rest of all logs
DESERTED_S = 1.0  # between the end of a control channel and SIGCHLD, where the worker has died
DESERTED = "its process lived on without the connection to its guard: it called os.exec*, or closed files of others"
MAX_STACK_DUMPS = 4  # stacks read at the same time, when many workers stall together
METRICS: Mapping[str, Metric] = {
    "uptime_seconds": gauge("Seconds since the guard started."),
    "workers": gauge("Workers that the guard owns."),
    "workers_starting": gauge("Workers that are not ready yet."),
    "workers_ready": gauge("Workers that are ready."),
    "workers_ending": gauge("Workers that are being ended."),
    "processes": gauge("Processes of all workers, their descendants included."),
    "resident_bytes": gauge("Resident memory of all workers."),
    "ports_leased": gauge("Ports that the guard holds leases of."),
    "starts_total": counter("Workers that were started."),
    "failed_starts_total": counter("Starts that failed."),
    "unexpected_exits_total": counter("Workers that ended without being asked to."),
    "stalls_total": counter("Workers that were found stalled."),
    "template_respawns_total": counter("Times that the template process was started again."),
    "lease_age_seconds": gauge("Seconds since the controller renewed the lease."),
}

_log = logging.getLogger(__name__)


class Supervisor:
    """Starts, watches and kills the workers of a guard.

    Args:
        lease: Its age is one of the metrics.
        handler: Makes what answers a worker's requests on its control channel.
        notify: Notifies the controller of an event.
        template_log: The file that the template process logs to.
        files: Merges the logs.
    """

    def __init__(
        self,
        config: GuardConfig,
        loop: asyncio.AbstractEventLoop,
        lease: Lease,
        handler: Callable[["Supervisor", Record], Handler],
        notify: Callable[[events.Event], None],
        template_log: str,
        files: FileThread,
    ) -> None:
        self.config = config
        self._loop, self._lease, self._notify = loop, lease, notify
        runtime.prepare(config.runtime_dir, config.guard_id)
        self._files = files
        self._merged_log = logs.MergedLog(config.run_dir, files)
        log = logs.append_to(template_log)
        base_env = inheritable(os.environ) | config.env
        template_env = base_env | marks(config.run_id, config.guard_id)
        self.table = Table()
        self.ports = PortLeases(config.run_id, Path(config.runtime_dir).parent / "ports.lock")
        self._counts = Counter[str]()  # what has happened since the guard started, by the metric's name
        self._children = Children(loop)
        self._killer = Killer(self.table, self.ports, self._on_removed)
        self._template = TemplateProcess(config, template_env, self._children, self._counts, log)
        self.launcher = Launcher(
            config=config,
            base_env=base_env,
            table=self.table,
            ports=self.ports,
            children=self._children,
            template=self._template,
            killer=self._killer,
            counts=self._counts,
            merged_log=self._merged_log,
            handler=partial(handler, self),
            on_exit=self._on_exit,
            on_desertion=lambda record: self.spawn_task(self._deserted(record)),
            spawn_task=self.spawn_task,
        )
        self._health = HealthChecks(config.ip, self.spawn_task)
        # For each worker its policy, and a lock that keeps its events in order while stacks are read.
        self._watches: dict[Record, tuple[StallWatch, asyncio.Lock]] = {}
        self._stack_dumps = asyncio.Semaphore(MAX_STACK_DUMPS)
        self._noted: set[Process] = set()
        self._oom = OomWatch()
        self._ended: asyncio.Task[KillReport] | None = None
        self._tasks: set[asyncio.Task[Any]] = set()

    # Lifecycle

    def warm_up(self) -> None:
        """Starts the template process before it is needed."""
        self.spawn_task(self._template.warm_up())

    async def tick(self) -> None:
        """Reaps, replaces a dead template process, and looks at all workers."""
        self._children.reap()
        if not self._template.healthy():
            self.warm_up()
        await self._look()

    async def copy_logs(self) -> None:
        """Merges what the workers have logged since the last call."""
        self._merged_log.copy_new_lines()

    async def shutdown(self, grace_s: float) -> KillReport:
        """Ends every process, verifies it, and releases everything. A second call waits for the first."""
        if self._ended is None:
            self._ended = self._loop.create_task(self._end_all(grace_s))
        return await asyncio.shield(self._ended)

    async def _end_all(self, grace_s: float) -> KillReport:
        self.launcher.closed = True
        report = await self._killer.kill(list(self.table.values()), grace_s)
        await self._template.close()
        killed = await in_thread(kill_below, STRAYS_S)  # no worker owns them
        left = await in_thread(sweep, self.config.run_id, self.config.guard_id, self.config.runtime_dir)
        strays = [f"{item.pid} {item.name}" for item in killed] + [f"{item.pid} {item.name}" for item in left]
        survivors = report.survivors + [f"{item.pid} {item.name}" for item in left if not item.gone]
        self._merged_log.finish()
        await self._files.adrain(MERGE_S)
        self.ports.close()
        return KillReport(killed=report.killed, strays=strays, survivors=survivors)

    def close(self) -> None:
        """Cancels what still runs. Call it after `shutdown`."""
        for task in self._tasks:
            task.cancel()
        self._children.close()

    def spawn_task(self, work: Coroutine[Any, Any, Any]) -> None:
        """Runs a coroutine concurrently; its failure is logged."""
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._task_ended)

    def _task_ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            _log.error("a task of the guard failed", exc_info=task.exception())

    # Workers

    async def kill(self, workers: list[str], grace_s: float, reason: str = "") -> KillReport:
        """Ends workers, and the workers that they have started.

        Args:
            reason: The reason to report to the controller, if another client has requested it.
        """
        unknown = [worker for worker in workers if worker not in self.table]
        records = [r for r in self.table.values() if r.worker_id in workers or r.started_by in workers]
        report = await self._killer.kill(records, grace_s)
        for record in records:
            if reason and (end := record.exit) is not None:
                await self._tell_exit(record, end, reason)
        return msgspec.structs.replace(report, unknown=unknown)

    async def set_env(self, worker: str, env: dict[str, str]) -> None:
        """Changes a worker's environment: the running process, then its record, which forks inherit."""
        record = self.table.living(worker)
        for key, value in env.items():
            check_env(key, value)
        if record.state is State.READY and record.peer is not None:
            await record.peer.request(SET_ENV.name, SetEnv(env=env), timeout=30.0, answer=SET_ENV.answer)
        elif record.state is State.READY:
            await post(record, self.config.ip, "/set_env", {"env": env})
        record.env |= env

    def _on_removed(self, record: Record) -> None:
        self._merged_log.unfollow(record.log)
        record.page.close()
        if record.peer is not None:
            record.peer.close()
        runtime.remove(runtime.worker_socket(self.config.runtime_dir, record.worker_id))

    def _on_exit(self, record: Record, end: Exit) -> None:
        """Reports the death of a worker that was ready, and kills what is left of it."""
        if record.state is not State.READY:
            return
        record.state = State.ENDING
        oom = end.signal == signal.SIGKILL and self._oom.claim()
        reason = self._oom.explain(record.rss) if oom else ""
        self._counts["unexpected_exits_total"] += 1
        self.spawn_task(self._tell_exit(record, end, reason))
        self.spawn_task(self._killer.kill([record], 0.0))  # workers that it has started in its slot live on

    async def _tell_exit(self, record: Record, end: Exit, reason: str) -> None:
        self._notify(await _exited(record, end, reason))

    async def _deserted(self, record: Record) -> None:
        """Ends a process that is no worker any more: what it still had to answer will not be answered."""
        assert record.exit_future is not None
        await asyncio.wait([record.exit_future], timeout=DESERTED_S)
        if record.state is State.STARTING and record.spec.argv is None:
            record.stall = DESERTED
            record.abort.set()
        elif record.state is State.READY:
            await self._killer.kill([record], 0.0)
            if record.exit is not None:
                self._counts["unexpected_exits_total"] += 1
                await self._tell_exit(record, record.exit, DESERTED)

    async def _look(self) -> None:
        """Samples all workers once: which processes are theirs, how much memory they use, whether they stall."""
        self._oom.look()
        await self._attribute()
        living = [record for record in self.table.values() if record.state is not State.ENDING]
        self._health.poll(living)
        known = self._watches
        self._watches = {record: known.get(record) or self._new_watch() for record in living}
        for record, (policy, lock) in self._watches.items():
            sample = probe.sample(record)
            if sample and record.peer is not None and len({0, record.stack, sample.stack}) == 3:
                self.spawn_task(self._deserted(record))  # it runs another program, and a child holds its channel open
            change = policy.add(sample) if sample else None
            if change is not None:
                self.spawn_task(self._report_stall(record, change, lock))

    def _new_watch(self) -> tuple[StallWatch, asyncio.Lock]:
        return StallWatch(self.config.stall_s, self.config.silence_s), asyncio.Lock()

    async def _attribute(self) -> None:
        descendants = await in_thread(Descendants)
        for record in self.table.values():
            if record.process is not None and record.state is not State.ENDING:  # else the killer tracks its processes
                owned = descendants.owned(record)
                record.tracked = owned
                record.rss = sum(descendants.by_pid[process.pid].rss for process in owned)
        if descendants.unmarked != self._noted:
            await in_thread(note_seen, self.config.runtime_dir, self.config.guard_id, descendants.unmarked)
            self._noted = descendants.unmarked

    async def _report_stall(self, record: Record, change: Stalled | Resumed, lock: asyncio.Lock) -> None:
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

    async def stacks(self, worker: str) -> str:
        """The Python stacks of a worker as text."""
        return await probe.stacks(self.table.living(worker), self._children)

    def alloc_ports(self, owner: str, count: int, wanted: Sequence[int] = ()) -> Ports:
        """Leases ports until their owner ends."""
        return Ports(ports=self.ports.lease(owner, count, wanted), host=self.config.ip)

    def metrics(self) -> dict[str, float]:
        """The guard's numbers by name, see `METRICS`."""
        now, states = time.monotonic(), Counter(record.state for record in self.table.values())
        return {
            "uptime_seconds": now - self._lease.began,
            "workers": len(self.table),
            **{f"workers_{state}": states[state] for state in State},
            "processes": sum(len(record.tracked) for record in self.table.values()),
            "resident_bytes": sum(record.rss for record in self.table.values()),
            "ports_leased": len(self.ports.held()),
            **{name: self._counts[name] for name, metric in METRICS.items() if metric.kind == "counter"},
            "lease_age_seconds": now - self._lease.renewed,
        }


async def _exited(record: Record, end: Exit, reason: str) -> events.Exited:
    assert record.process is not None
    return events.Exited(
        worker=record.worker_id,
        pid=record.process.pid,
        exit_code=end.code,
        signal=end.signal,
        reason=reason,
        log_tail=await logs.tail_soon(record.log_path, record.log_start),
        log_path=record.log_path,
        host=socket.gethostname(),
    )
