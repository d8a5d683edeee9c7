"""Starts workers: adds their records, creates their processes by fork or cold, waits until they are ready."""

import asyncio
import logging
import os
import socket
import sys
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from rolecall.errors import RolecallError, WorkerConfigurationError, describe_exit
from rolecall.guard import environment, logs, runtime
from rolecall.guard.children import Children
from rolecall.guard.command import fill
from rolecall.guard.host import HOST_CORES
from rolecall.guard.killer import Killer
from rolecall.guard.ports import PortLeases
from rolecall.guard.proc import Process
from rolecall.guard.readiness import wait_until_ready
from rolecall.guard.spawn import spawn
from rolecall.guard.table import Record, State, Table
from rolecall.guard.template_process import ForkRequest, TemplateError, TemplateProcess
from rolecall.protocol.fork import ForkSpec
from rolecall.protocol.guard import ProcessSpec, StartResult
from rolecall.protocol.guard_config import GuardConfig
from rolecall.protocol.message import from_plain, to_plain
from rolecall.protocol.worker import Configured, WorkerConfig
from rolecall.transport.link import Link
from rolecall.transport.peer import Peer
from rolecall.types import check_argv, check_env, check_name

INDEX_DIGITS = 6  # of a worker's index, which becomes part of a socket's path

OnCancel = Callable[[Callable[[], None]], None]
OnResult = Callable[[StartResult], Awaitable[None]]

_log = logging.getLogger(__name__)


class StartError(Exception):
    """Why one worker could not be started: `StartResult.error`."""


@dataclass(slots=True)
class LaunchContext:
    """What a launcher uses and does not own."""

    config: GuardConfig
    base_env: Mapping[str, str]
    table: Table
    ports: PortLeases
    children: Children
    template: TemplateProcess
    killer: Killer
    make_peer: Callable[[Record], Peer]
    on_planned: Callable[[Record], None]
    on_created: Callable[[Record], None]
    spawn_task: Callable[[Coroutine[Any, Any, Any]], None]


class Launcher:
    """Starts workers, any number at a time. A failure of one is its result; it never fails the others."""

    def __init__(self, context: LaunchContext) -> None:
        self._context = context
        self.closed = False

    async def start(
        self,
        specs: Sequence[ProcessSpec],
        started_by: str = "",
        *,
        on_result: OnResult | None = None,
        on_cancel: OnCancel | None = None,
    ) -> list[StartResult]:
        """Starts all at the same time. Returns when each is ready, or has failed and its processes are gone.

        Args:
            started_by: The worker that has requested it; empty for the controller.
            on_result: Gets each result as soon as it is known.
            on_cancel: Takes a function to call when the caller gives up; it kills what was started.
        """
        planned = await asyncio.gather(*(self._plan(spec, started_by) for spec in specs))
        records = [record for record in planned if isinstance(record, Record)]
        if on_cancel is not None:
            on_cancel(lambda: self._context.spawn_task(self._context.killer.kill(records, 0)))
        failures = await self._create(records)
        return list(await asyncio.gather(*(self._finish_and_report(item, failures, on_result) for item in planned)))

    # Plan

    async def _plan(self, spec: ProcessSpec, started_by: str) -> Record | StartResult:
        previous = self._context.table.find(spec.worker_id)
        if previous is not None and previous.state is State.ENDING:
            await previous.gone.wait()
        try:
            return self._record(spec, started_by)
        except (RolecallError, StartError, OSError) as error:
            if self._context.table.find(spec.worker_id) is None:
                self._context.ports.release(spec.worker_id)  # leased before, for this start
            return StartResult(worker_id=spec.worker_id, ok=False, error=str(error))

    def _record(self, spec: ProcessSpec, started_by: str) -> Record:
        context = self._context
        _check(spec)
        if self.closed:
            raise StartError("the guard is ending")
        if context.table.find(spec.worker_id) is not None:
            raise StartError(f"{spec.worker_id} is already running; delete it first")
        target = context.table.get(spec.target) if spec.target else None
        spec = _in_slot(spec, target.spec) if target else spec
        record = Record(
            spec=spec,
            env=environment.recorded_env(spec, target.env if target else None),
            log_path=logs.log_path(context.config.run_dir, spec.worker_id),
            ports=spec.ports or context.ports.lease(spec.worker_id, spec.port_count),
            started_by=started_by,
        )
        record.log_start = logs.size(record.log_path)
        context.on_planned(record)
        context.table.add(record)
        return record

    def environment(self, record: Record) -> dict[str, str]:
        """The whole environment of a worker's process."""
        config = self._context.config
        env = dict(self._context.base_env) | record.env
        env |= environment.thread_counts(env, record.spec.cores, HOST_CORES)
        return environment.with_run_ids(env, config.run_id, config.guard_id, record.worker_id)

    def _python(self) -> str:
        return self._context.config.python or sys.executable

    def _forkable(self, record: Record) -> bool:
        spec = record.spec
        return spec.argv is None and not environment.needs_cold_start(
            self.environment(record), self._context.template.env
        )

    # Create processes

    async def _create(self, records: Sequence[Record]) -> dict[Record, str]:
        """Creates the processes; returns why it failed, for those for which it did."""
        forks = [record for record in records if self._forkable(record)]
        failures = {record: self._spawn(record) for record in records if record not in forks}
        try:
            failures |= await self._fork_unless_aborted(forks)
        except (TemplateError, OSError) as error:
            _log.warning("workers are started cold: %s", error)
            failures |= {record: self._spawn(record) for record in forks}
        finally:
            for record in records:
                record.created.set()
        return {record: failure for record, failure in failures.items() if failure}

    async def _fork_unless_aborted(self, records: Sequence[Record]) -> dict[Record, str]:
        """Forks those that were not aborted while the template was importing, which takes seconds."""
        if records:
            await self._wait_until_warm(records)
        aborted = [record for record in records if record.abort.is_set()]
        failures = await self._fork([record for record in records if record not in aborted])
        return failures | dict.fromkeys(aborted, "killed while starting")

    async def _wait_until_warm(self, records: Sequence[Record]) -> None:
        """Waits for the template, or until all workers are aborted."""
        warm = asyncio.ensure_future(self._context.template.warm_up())
        aborted = asyncio.gather(*(record.abort.wait() for record in records))
        either: set[asyncio.Future[Any]] = {warm, aborted}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        aborted.add_done_callback(_retrieve_exception)
        aborted.cancel()
        warm.add_done_callback(_retrieve_exception)  # it continues; the next fork raises why it failed

    async def _fork(self, records: Sequence[Record]) -> dict[Record, str]:
        if not records:
            return {}
        pairs = [socket.socketpair() for _ in records]
        try:
            ends = zip(records, pairs, strict=True)
            requests = [ForkRequest(self._fork_spec(record), theirs.fileno()) for record, (_, theirs) in ends]
            children = await self._context.template.fork(requests)
        except BaseException:
            for ours, _ in pairs:
                ours.close()
            raise
        finally:
            for _, theirs in pairs:
                theirs.close()
        return {
            record: self._adopt(record, ours, child)
            for record, (ours, _), child in zip(records, pairs, children, strict=True)
        }

    def _adopt(self, record: Record, control: socket.socket, child: Process | str) -> str:
        if isinstance(child, Process):
            self._register_process(record, child, control)
            return ""
        control.close()
        return child

    def _fork_spec(self, record: Record) -> ForkSpec:
        env = self.environment(record)
        return ForkSpec(
            worker_id=record.worker_id,
            guard=os.getpid(),
            env={os.fsencode(name): os.fsencode(value) for name, value in env.items()},
            log_path=record.log_path,
            entry=self._context.config.entry,
            cwd=record.spec.cwd or self._context.config.cwd,
            threads=environment.thread_limit(env, record.spec.cores, HOST_CORES),
        )

    def _spawn(self, record: Record) -> str:
        """Starts a program or a cold worker; returns why it could not."""
        if record.abort.is_set():
            return "killed while starting"
        try:
            log = os.open(record.log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            try:
                if record.spec.argv is not None:
                    self._register_process(record, self._run(record, self._argv(record), log), None)
                else:
                    self._spawn_cold(record, log)
            finally:
                os.close(log)
        except (RolecallError, OSError, ValueError) as error:  # ValueError: a NUL in a string
            return str(error)
        return ""

    def _argv(self, record: Record) -> list[str]:
        return fill(
            record.spec.argv or [],
            host=self._context.config.ip,
            ports=record.ports,
            worker_id=record.worker_id,
            devices=environment.recorded_env(record.spec, record.env).get(record.spec.device_var, ""),
            python=self._python(),
        )

    def _spawn_cold(self, record: Record, log: int) -> None:
        config = self._context.config
        ours, theirs = socket.socketpair()
        argv = [self._python(), "-m", config.cold_module, "--control-fd", str(theirs.fileno())]
        try:
            with theirs:
                process = self._run(record, argv, log, keep=[theirs.fileno()])
        except BaseException:
            ours.close()
            raise
        self._register_process(record, process, ours)

    def _run(self, record: Record, argv: list[str], log: int, keep: Sequence[int] = ()) -> Process:
        cwd = record.spec.cwd or self._context.config.cwd
        return spawn(record.worker_id, argv, self.environment(record), log=log, cwd=cwd, keep=keep)

    def _register_process(self, record: Record, process: Process, control: socket.socket | None) -> None:
        record.process = process
        record.exit_future = self._context.children.watch(process)
        record.mark("forked")
        self._context.on_created(record)
        if control is not None:
            record.peer = self._context.make_peer(record)
            record.peer.attach(Link(control, loop=asyncio.get_running_loop()))

    # Wait until ready

    async def _finish_and_report(
        self, item: Record | StartResult, failures: Mapping[Record, str], on_result: OnResult | None
    ) -> StartResult:
        result = await self._finish(item, failures)
        if on_result is not None:
            await on_result(result)
        return result

    async def _finish(self, item: Record | StartResult, failures: Mapping[Record, str]) -> StartResult:
        if isinstance(item, StartResult):
            return item
        error = failures.get(item) or await self._wait_ready(item)
        if not error and item.state is State.STARTING:
            item.state = State.READY
            item.mark("ready")
            return self._result(item)
        end = item.exit  # read before it is killed: how it ended by itself
        tail = logs.tail(item.log_path, item.log_start)
        if item.state is State.ENDING:
            await item.gone.wait()  # the task that aborted the start kills it and reports that
        else:
            await self._context.killer.kill([item], 0)
        return msgspec.structs.replace(
            self._result(item, error or "killed while starting"),
            log_tail=tail,
            exit_code=end.code if end else None,
            signal=end.signal if end else None,
        )

    async def _wait_ready(self, record: Record) -> str:
        """Waits until a worker is ready, has ended or is aborted; returns why it is not ready."""
        assert record.exit_future is not None
        ready = asyncio.ensure_future(self._until_ready(record))
        abort = asyncio.ensure_future(record.abort.wait())
        timeout = record.spec.start_timeout
        stalled = asyncio.ensure_future(record.stalled.wait())
        waiting: set[asyncio.Future[Any]] = {ready, abort, stalled, record.exit_future}
        try:
            await asyncio.wait(waiting, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        finally:
            abort.cancel()
            stalled.cancel()
            if not ready.done():
                ready.cancel()
        if record.abort.is_set():
            return "killed while starting"
        if record.exit_future.done():
            end = record.exit_future.result()
            return f"the process ended during startup: {describe_exit(end.code, end.signal)}"
        if record.stalled.is_set():
            return f"the process makes no progress: {record.stall}"
        if not ready.done():
            return f"not ready within {timeout:g} s" + (f" ({record.waits_for})" if record.waits_for else "")
        return str(ready.exception() or "")

    async def _until_ready(self, record: Record) -> None:
        if record.peer is None:
            await wait_until_ready(record, self._context.config)
            return
        answer = await record.peer.request("configure", to_plain(self._worker_config(record)))
        record.socket = from_plain(Configured, answer, f"worker {record.worker_id}").socket

    def _worker_config(self, record: Record) -> WorkerConfig:
        config = self._context.config
        return WorkerConfig(
            worker_id=record.worker_id,
            run_id=config.run_id,
            guard_id=config.guard_id,
            token=config.token,
            socket=runtime.worker_socket(config.runtime_dir, record.worker_id),
            ip=config.ip,
            bind=config.bind,
            port=record.ports[0] if record.ports else 0,
            ports=record.ports,
            run_dir=config.run_dir,
            main=config.main,
            sys_path=config.sys_path,
            progress=runtime.page_path(config.runtime_dir, config.guard_id, record.worker_id),
            log_path=record.log_path,
            tensor_backend=config.tensor_backend,
        )

    def _result(self, record: Record, error: str = "") -> StartResult:
        return StartResult(
            worker_id=record.worker_id,
            ok=not error,
            pid=record.process.pid if record.process else None,
            ip=self._context.config.ip,
            ports=record.ports,
            socket=record.socket,
            timeline=record.timeline,
            error=error,
            log_path=record.log_path,
        )


def _check(spec: ProcessSpec) -> None:
    role, _, index = spec.worker_id.rpartition("/")
    check_name("role", role)  # it becomes part of paths
    if not (index.isascii() and index.isdecimal() and len(index) <= INDEX_DIGITS):
        raise WorkerConfigurationError("bad worker id", spec.worker_id, "use role/index")
    for key, value in spec.env.items():
        check_env(key, value)
    if spec.argv is not None:
        check_argv(spec.argv)
    if spec.ready and (spec.ready.http or spec.ready.tcp) and not (spec.ports or spec.port_count):
        raise WorkerConfigurationError(
            "readiness by a port, but no port", spec.port_count, "use a port_count of 1 or more"
        )


def _retrieve_exception(task: asyncio.Future[Any]) -> None:
    if not task.cancelled():
        task.exception()


def _in_slot(spec: ProcessSpec, target: ProcessSpec) -> ProcessSpec:
    """A fork's spec, completed with the slot of its target."""
    return msgspec.structs.replace(
        spec,
        devices=spec.devices or target.devices,
        device_var=target.device_var,
        cores=spec.cores or target.cores,
        cwd=spec.cwd or target.cwd,
    )
