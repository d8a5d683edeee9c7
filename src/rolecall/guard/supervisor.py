"""The guard itself: it connects its parts, keeps its lease, reports deaths, and leaves no process behind."""

import asyncio
import logging
import os
import signal
import socket
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import msgspec

from rolecall.errors import RolecallError
from rolecall.guard import environment, host, logs, probe, runtime
from rolecall.guard.children import Children, Exit
from rolecall.guard.endpoints import Endpoints
from rolecall.guard.forker import Template, TemplateError
from rolecall.guard.killing import Killer
from rolecall.guard.launch import Launcher, OnCancel, Parts, Tell
from rolecall.guard.lease import Lease
from rolecall.guard.metrics import Counts
from rolecall.guard.notices import Notices
from rolecall.guard.ownership import Census
from rolecall.guard.ports import PortLeases
from rolecall.guard.proc import Process, alive, send
from rolecall.guard.progress import ProgressPage
from rolecall.guard.service import ControllerRequests, WorkerRequests
from rolecall.guard.sweep import sweep
from rolecall.guard.table import Record, State, Table
from rolecall.guard.watching import Watcher
from rolecall.protocol import events
from rolecall.protocol.guard import KillReport, Ports, ProcessSpec, ShutdownReport, StartResult
from rolecall.protocol.guard_config import GuardConfig
from rolecall.protocol.message import from_json, to_plain
from rolecall.protocol.worker_methods import SetEnv
from rolecall.transport.client import Client
from rolecall.transport.loop import new_loop
from rolecall.transport.peer import Peer
from rolecall.types import check_env

TICK_S = 1.0
LOG_TICK_S = 0.2

_log = logging.getLogger(__name__)


class Guard:
    """Owns the processes of a run on one host. Everything runs on one event loop, in the main thread."""

    def __init__(self, config: GuardConfig, loop: asyncio.AbstractEventLoop) -> None:
        self.config, self.loop = config, loop
        runtime.prepare(config.runtime_dir, config.guard_id)
        self.merged = logs.MergedLog(config.run_dir)
        self._template_log = os.open(_log_file(config), os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        base_env = environment.base(os.environ, config.env)
        template_env = environment.marked(base_env, config.run_id, config.guard_id, "")
        self.table = Table()
        self.children = Children(loop)
        self.ports = PortLeases(config.run_id)
        self.killer = Killer(self.table, self.ports, self._gone)
        self.template = Template(config, template_env, self.children, self._template_log)
        self.launcher = Launcher(
            Parts(
                config=config,
                base_env=base_env,
                table=self.table,
                ports=self.ports,
                children=self.children,
                template=self.template,
                killer=self.killer,
                make_peer=self._make_peer,
                on_planned=self._planned,
                on_made=self._made,
                spawn_task=self.spawn_task,
            )
        )
        self.counts = Counts()
        self.watcher = Watcher(self.table, self.children, self.counts, self.tell, self.spawn_task, config.stall_s)
        self.endpoints = Endpoints(self, config, loop)
        self.lease = Lease(config.lease_s, time.monotonic())
        self._stop: asyncio.Future[str] = loop.create_future()
        self._ended: asyncio.Task[ShutdownReport] | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._controller = Process(config.controller_pid, config.controller_start)
        self._controller_handle = -1
        self.client: Client | None = None
        self.notices = Notices(loop, self.tell)

    # Lifecycle

    async def run(self) -> None:
        """Serves until the controller, a signal or the lease ends it."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            self.loop.add_signal_handler(number, self.stop, f"asked to by {signal.Signals(number).name}")
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM, signal.SIGINT, signal.SIGHUP))
        self._watch_controller()
        self.endpoints.listen()
        self.client = Client(
            "controller",
            self.config.controller,
            self.config.token,
            loop=self.loop,
            hello=to_plain(host.hello(self.config)),
            handler=ControllerRequests(self),
            on_notify=self._notified,
            on_attached=lambda: self.lease.connected(time.monotonic()),
            on_detached=self._cut,
        )
        if self.config.notices:
            self.notices.open()
        self.spawn_task(self._warm())
        self.spawn_task(self._every(TICK_S, self._tick))
        self.spawn_task(self._every(LOG_TICK_S, lambda: asyncio.to_thread(self.merged.pump)))
        reason = await self._stop
        _log.info("ending: %s", reason)
        await self.shutdown(0.0)
        await self._close()

    def stop(self, reason: str) -> None:
        """Ends the guard soon. The first reason counts."""
        if not self._stop.done():
            self._stop.set_result(reason)

    async def shutdown(self, grace_s: float) -> ShutdownReport:
        """Ends every process, verifies it, and releases everything. A second call waits for the first."""
        if self._ended is None:
            self._ended = self.loop.create_task(self._end_all(grace_s))
        return await asyncio.shield(self._ended)

    async def _end_all(self, grace_s: float) -> ShutdownReport:
        self.launcher.closed = True
        report = await self.killer.end(list(self.table), grace_s)
        await self.template.close()
        strays = await asyncio.to_thread(_kill_strays)
        left = await asyncio.to_thread(sweep, self.config.run_id, self.config.guard_id)
        strays += [f"{item.pid} {item.name}" for item in left]
        survivors = report.survivors + [f"{item.pid} {item.name}" for item in left if not item.gone]
        await asyncio.to_thread(self.merged.close)
        self.ports.close()
        return ShutdownReport(killed=report.killed, strays=strays, survivors=survivors)

    async def _close(self) -> None:
        for task in self._tasks:
            task.cancel()
        self.notices.close()
        if self.client is not None:
            self.client.close()
        if self._controller_handle >= 0:
            self.loop.remove_reader(self._controller_handle)
        self.children.close()
        await self.endpoints.close()
        runtime.clean(self.config.runtime_dir, self.config.guard_id)

    def spawn_task(self, work: Coroutine[Any, Any, Any]) -> None:
        """Runs a coroutine concurrently; its failure is logged."""
        task = self.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._task_ended)

    def _task_ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            _log.error("a task of the guard failed", exc_info=task.exception())

    async def _every(self, pause: float, work: Any) -> None:
        while True:
            await asyncio.sleep(pause)
            try:
                result = work()
                if asyncio.iscoroutine(result):
                    await result
            except Exception:  # observation must continue, whatever one read of /proc or a full disk raises
                _log.exception("%s failed", getattr(work, "__qualname__", work))

    async def _warm(self) -> None:
        try:
            await self.template.warm()
        except TemplateError as error:
            _log.error("%s", error)

    # The controller

    def _notified(self, topic: str, value: Any) -> None:
        if topic == "lease":
            self.lease.renew(time.monotonic())
            if self.client is not None:
                self.client.peer.notify("alive")

    def _cut(self, error: Exception | None) -> None:
        self.lease.disconnected()
        self._check_lease()

    def _watch_controller(self) -> None:
        """On the controller's host its death is noticed at once, even if a child of it keeps the connection open."""
        if not self._controller.pid:
            return
        try:
            self._controller_handle = os.pidfd_open(self._controller.pid)
        except OSError:
            return
        self.loop.add_reader(self._controller_handle, self._controller_died)

    def _controller_died(self) -> None:
        self.loop.remove_reader(self._controller_handle)
        self._check_lease()

    def _check_lease(self) -> None:
        now = time.monotonic()
        local = bool(self._controller.pid)
        living = local and alive(self._controller)
        if living:
            self.lease.renew(now)  # a controller that is stopped by Ctrl-Z or a debugger cannot renew the lease
        if self.client is not None and self.client.peer.closed:
            self.stop("the controller refused the guard")
        reason = self.lease.verdict(now, controller_dead=local and not living)
        if reason:
            self.stop(reason)

    def tell(self, event: events.Event) -> None:
        """Notifies the controller of an event."""
        topic = events.topic_of(event)
        if self.client is not None:
            try:
                self.client.peer.notify(topic, to_plain(event))
            except RolecallError as error:
                _log.warning("the controller was not told of %s: %s", topic, error)

    # Workers

    async def start(
        self,
        specs: list[ProcessSpec],
        started_by: str = "",
        *,
        tell: Tell | None = None,
        on_cancel: OnCancel | None = None,
    ) -> list[StartResult]:
        """Starts workers; see `Launcher.start`."""
        results = await self.launcher.start(specs, started_by, tell=tell, on_cancel=on_cancel)
        self.counts.starts += len(results)
        self.counts.failed_starts += sum(not result.ok for result in results)
        return results

    async def kill(self, workers: list[str], grace_s: float, told: str = "") -> KillReport:
        """Ends workers, and the workers that they have started.

        Args:
            told: The reason to report to the controller, if another client has requested it.
        """
        known = [record for record in (self.table.find(worker) for worker in workers) if record is not None]
        names = {record.worker_id for record in known}
        records = known + [r for r in self.table if r.started_by in workers and r not in known]
        report = await self.killer.end(records, grace_s)
        for record in records:
            if told and (end := record.exit) is not None:
                self.tell(_exited(record, end, told))
        return msgspec.structs.replace(report, unknown=[worker for worker in workers if worker not in names])

    async def set_env(self, worker: str, env: dict[str, str]) -> None:
        """Changes a worker's environment: its record, which forks inherit, and the running process."""
        record = self.table.get(worker)
        for key, value in env.items():
            check_env(key, value)
        record.env |= env
        if record.peer is not None and record.state is State.READY:
            await record.peer.request("set_env", to_plain(SetEnv(env=env)), timeout=30.0)

    def _make_peer(self, record: Record) -> Peer:
        def notified(topic: str, value: Any) -> None:
            if topic == "connected":
                record.mark("connected")

        return Peer(
            record.worker_id, loop=self.loop, handler=WorkerRequests(self, record), on_notify=notified, context=None
        )

    def _planned(self, record: Record) -> None:
        record.page = ProgressPage(runtime.page_path(self.config.runtime_dir, self.config.guard_id, record.worker_id))
        record.source = self.merged.follow(record.worker_id, record.log_path, record.log_start)

    def _made(self, record: Record) -> None:
        assert record.end is not None
        record.end.add_done_callback(lambda end: self._exited(record, end.result()))

    def _gone(self, record: Record) -> None:
        if record.source is not None:
            self.spawn_task(asyncio.to_thread(self.merged.unfollow, record.source))
        if record.page is not None:
            record.page.close()
        if record.peer is not None:
            record.peer.close()
        Path(runtime.worker_socket(self.config.runtime_dir, record.worker_id)).unlink(missing_ok=True)

    def _exited(self, record: Record, end: Exit) -> None:
        """A worker's process has ended. Nobody asked for it when it was ready."""
        if record.state is not State.READY:
            return
        record.state = State.ENDING
        oom = self.watcher.oom
        reason = oom.explain(record.rss) if end.signal == signal.SIGKILL and oom.claim() else ""
        self.counts.exits += 1
        self.tell(_exited(record, end, reason))
        self.spawn_task(self.killer.end([record], 0.0))  # what it has forked into its slot is not its own

    async def stacks(self, worker: str) -> str:
        """The Python stacks of a worker as text."""
        return await probe.stacks(self.table.get(worker), self.children)

    def alloc_ports(self, owner: str, count: int) -> Ports:
        """Leases ports until their owner ends."""
        return Ports(ports=self.ports.lease(owner, count), host=self.config.ip)

    def metrics(self) -> dict[str, float]:
        """The guard's numbers by name."""
        age = time.monotonic() - self.lease.renewed
        return self.counts.metrics(self.table, len(self.ports.held()), self.template.respawns, age)

    async def _tick(self) -> None:
        self.children.reap()
        self._check_lease()
        if not self.template.check():
            self.spawn_task(self._warm())
        await self.watcher.look()


def _kill_strays() -> list[str]:
    """Kills what is still below the guard and was attributed to nobody."""
    seen: dict[Process, str] = {}
    deadline = time.monotonic() + 5.0
    while time.monotonic() < deadline:
        census = Census()
        if not census.table:
            break
        for stat in census.table.values():
            seen[stat.process] = f"{stat.pid} {stat.name}"
            send(stat.process, signal.SIGKILL)
        time.sleep(0.005)
    return list(seen.values())


def _exited(record: Record, end: Exit, reason: str) -> events.Exited:
    assert record.process is not None
    return events.Exited(
        worker=record.worker_id,
        pid=record.process.pid,
        exit_code=end.code,
        signal=end.signal,
        reason=reason,
        log_tail=logs.tail(record.log_path, record.log_start),
        log_path=record.log_path,
        host=socket.gethostname(),
    )


def _log_file(config: GuardConfig) -> str:
    return str(Path(config.run_dir, "logs", f"guard-{config.guard_id}.log"))


def main(raw: bytes) -> int:
    """Runs a guard until its end; returns its exit status."""
    config = host.settled(from_json(GuardConfig, raw, "the controller"))
    path = Path(_log_file(config))
    path.parent.mkdir(parents=True, exist_ok=True)
    logging.basicConfig(
        filename=path, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", force=True
    )
    loop = new_loop(uvloop=False)  # uvloop handles SIGCHLD itself, and the guard handles no calls
    asyncio.set_event_loop(loop)
    try:
        loop.run_until_complete(Guard(config, loop).run())
    except BaseException:
        _log.exception("the guard failed; its reaper kills what it owned")
        raise
    return 0
