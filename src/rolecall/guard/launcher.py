"""Starts workers: adds their records, creates their processes by fork or cold, waits until they are ready."""

import asyncio
import logging
import os
import socket
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

import msgspec

from rolecall.errors import (
    EngineCallError,
    RolecallError,
    RPCConnectionError,
    WorkerConfigurationError,
    describe_exit,
    explained,
)
from rolecall.guard import environment, logs, runtime
from rolecall.guard.children import Children, Exit
from rolecall.guard.command import Place, fill
from rolecall.guard.killer import Killer
from rolecall.guard.ports import PortLeases
from rolecall.guard.proc import Process, read_stat
from rolecall.guard.programs import post, wait_until_ready
from rolecall.guard.spawn import spawn
from rolecall.guard.table import Record, State, Table
from rolecall.guard.template_process import TemplateError, TemplateProcess
from rolecall.protocol.devices import device_variable
from rolecall.protocol.environment import CONTROL, WORKER, marks
from rolecall.protocol.fork import ForkSpec
from rolecall.protocol.guard import ProcessSpec, StartResult
from rolecall.protocol.guard_config import GuardConfig
from rolecall.protocol.worker_methods import CONFIGURE, WorkerConfig
from rolecall.transport.files import read_within
from rolecall.transport.link import Link
from rolecall.transport.peer import Handler, Peer
from rolecall.types import check_argv, check_env, check_name, role_and_index

ABORTED = "killed while starting"
LOG_S = 5.0  # for a file system to open a log
INDEX_DIGITS = 6  # of a worker's index, which becomes part of a socket's path

OnCancel = Callable[[Callable[[], None]], None]
OnResult = Callable[[StartResult], Awaitable[None]]

_log = logging.getLogger(__name__)


class StartError(Exception):
    """Why one worker could not be started: `StartResult.error`."""


@dataclass(eq=False)
class Launcher:
    """Starts workers, any number at a time. A failure of one is its result; it never fails the others.

    Attributes:
        handler: Makes what answers a worker's requests on its control channel.
        on_exit: Told when the process of a worker has ended.
        on_desertion: Told when the other end of its control channel is closed.
        closed: The guard is ending, so nothing is started any more.
    """

    config: GuardConfig
    base_env: Mapping[str, str]
    table: Table
    ports: PortLeases
    children: Children
    template: TemplateProcess
    killer: Killer
    counts: Counter[str]
    merged_log: logs.MergedLog
    handler: Callable[[Record], Handler]
    on_exit: Callable[[Record, Exit], None]
    on_desertion: Callable[[Record], None]
    spawn_task: Callable[[Coroutine[Any, Any, Any]], None]
    closed: bool = False

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
            on_cancel(lambda: self.spawn_task(self.killer.kill(records, self.config.grace_s)))
        await self._create(records)
        return await asyncio.gather(*(self._finish(item, on_result) for item in planned))

    # Plan

    async def _plan(self, spec: ProcessSpec, started_by: str) -> Record | StartResult:
        previous = self.table.get(spec.worker_id)
        if previous is not None and previous.state is State.ENDING:
            await previous.gone.wait()
        try:
            log_path = logs.log_path(self.config.run_dir, spec.worker_id)
            return self._record(spec, started_by, log_path, await read_within(LOG_S, partial(logs.size, log_path), 0))
        except (RolecallError, StartError, OSError) as error:
            if spec.worker_id not in self.table:
                self.ports.release(spec.worker_id)  # leased before, for this start
            return StartResult(worker_id=spec.worker_id, ok=False, error=explained(error))

    def _record(self, spec: ProcessSpec, started_by: str, log_path: str, log_start: int) -> Record:
        _check(spec)
        if self.closed:
            raise StartError("the guard is ending")
        if spec.worker_id in self.table:
            raise StartError(f"{spec.worker_id} is already running; delete it first")
        target = self.table.living(spec.target) if spec.target else None
        spec = _completed(spec, target.spec if target else None, self.config.cwd)
        record = Record(
            spec=spec,
            env=environment.recorded_env(spec, target.env if target else None),
            log_path=log_path,
            log_start=log_start,
            ports=spec.ports or self.ports.lease(spec.worker_id, spec.port_count),
            target_ports=target.ports if target else [],
            started_by=started_by,
            page=runtime.ProgressPage(runtime.page_path(self.config.runtime_dir, self.config.guard_id, spec.worker_id)),
            log=self.merged_log.follow(spec.worker_id, log_path, log_start),
        )
        self.table[record.worker_id] = record
        return record

    # Create processes

    def _environment(self, record: Record) -> dict[str, str]:
        """The whole environment of a worker's process."""
        env = {**self.base_env, **record.env, **self._place(record).variables()}
        ids = {**marks(self.config.run_id, self.config.guard_id), WORKER: record.worker_id}
        return {**env, **environment.thread_counts(env, record.spec.cores), **ids}

    async def _create(self, records: Sequence[Record]) -> None:
        """Creates the processes; those that could not be created get an `error`, and those that were aborted none."""
        envs = {record: self._environment(record) for record in records}
        forks = {
            record: env
            for record, env in envs.items()
            if record.spec.argv is None and not environment.needs_cold_start(env, self.template.env)
        }
        await self._spawn_all({record: env for record, env in envs.items() if record not in forks})
        try:
            if forks:
                await self._fork(forks)
        except (TemplateError, OSError) as error:
            _log.warning("workers are started cold: %s", error)
            await self._spawn_all(forks)
        finally:
            for record in records:
                record.created.set()

    async def _fork(self, envs: Mapping[Record, dict[str, str]]) -> None:
        """Forks those that were not aborted while the template was importing, which takes seconds."""
        await self._wait_until_warm(envs)
        records = [record for record in envs if not record.abort.is_set()]
        with ExitStack() as unused:
            pairs = [socket.socketpair() for _ in records]
            for end in chain.from_iterable(pairs):
                unused.enter_context(end)
            specs = [self._fork_spec(record, envs[record]) for record in records]
            children = await self.template.fork([*zip(specs, (theirs.fileno() for _, theirs in pairs), strict=True)])
            for record, (ours, _), child in zip(records, pairs, children, strict=True):
                if isinstance(child, Process):
                    self._register(record, child, socket.socket(fileno=ours.detach()))
                else:
                    record.error = child

    async def _wait_until_warm(self, records: Iterable[Record]) -> None:
        """Waits for the template, or until all workers are aborted."""

        async def all_aborted() -> None:
            for record in records:
                await record.abort.wait()

        aborted = asyncio.ensure_future(all_aborted())  # a gathering that is cancelled would complain
        warm = asyncio.ensure_future(self.template.warm_up())
        await asyncio.wait({warm, aborted}, return_when=asyncio.FIRST_COMPLETED)
        aborted.cancel()
        # It continues; the next fork raises why it failed.
        warm.add_done_callback(lambda task: task.cancelled() or task.exception())

    def _fork_spec(self, record: Record, env: Mapping[str, str]) -> ForkSpec:
        return ForkSpec(
            worker_id=record.worker_id,
            guard=os.getpid(),
            env={os.fsencode(name): os.fsencode(value) for name, value in env.items()},
            log_path=record.log_path,
            entry=self.config.entry,
            cwd=record.spec.cwd,
            threads=environment.thread_limit(env, record.spec.cores),
        )

    async def _spawn_all(self, envs: Mapping[Record, dict[str, str]]) -> None:
        """Starts programs and cold workers, unless they are aborted."""
        late: int | str = f"its log could not be opened within {LOG_S:g} s"
        opened = [read_within(LOG_S, partial(logs.open_log, record.log_path), late) for record in envs]
        for (record, env), log in zip(envs.items(), await asyncio.gather(*opened), strict=True):
            if isinstance(log, str):
                record.error = log
            elif record.abort.is_set():
                os.close(log)
            else:
                self._spawn(record, env, log)

    def _spawn(self, record: Record, env: Mapping[str, str], log: int) -> None:
        control, keep = None, []
        try:
            with ExitStack() as ours_alone:
                ours_alone.callback(os.close, log)
                if record.may_serve:
                    control, theirs = socket.socketpair()
                    keep = [ours_alone.enter_context(theirs).fileno()]
                    env = {**env, CONTROL: str(keep[0])}
                if record.spec.argv is not None:
                    devices = env.get(record.spec.device_var, "")
                    argv = fill(record.spec.argv, self._place(record), devices=devices, python=self.config.python)
                else:
                    argv = [self.config.python, "-m", self.config.cold_module]
                process = spawn(record.worker_id, argv, env, log=log, cwd=record.spec.cwd, keep=keep)
        except (RolecallError, OSError, ValueError) as error:  # ValueError: a NUL in a string
            if control is not None:
                control.close()
            record.error = explained(error)
        else:
            self._register(record, process, control)

    def _place(self, record: Record) -> Place:
        experiment, trial = self.config.experiment, self.config.trial
        return Place(record.worker_id, self.config.ip, record.ports, experiment, trial, record.target_ports)

    def _register(self, record: Record, process: Process, control: socket.socket | None) -> None:
        record.process = process
        record.exit_future = self.children.watch(process)
        record.mark("forked")
        record.exit_future.add_done_callback(lambda end: self.on_exit(record, end.result()))
        if control is not None:
            loop = asyncio.get_running_loop()
            record.peer = Peer(
                record.worker_id,
                loop=loop,
                handler=self.handler(record),
                on_detached=lambda error: self.on_desertion(record),
            )
            record.peer.attach(Link(control, loop=loop))

    # Wait until ready

    async def _finish(self, item: Record | StartResult, on_result: OnResult | None) -> StartResult:
        result = item if isinstance(item, StartResult) else await self._started(item)
        self.counts["starts_total"] += 1
        self.counts["failed_starts_total"] += not result.ok
        if on_result is not None:
            await on_result(result)
        return result

    async def _started(self, record: Record) -> StartResult:
        """The result of one whose process was created, or was not."""
        error = record.error or (await self._wait_ready(record) if record.exit_future is not None else ABORTED)
        if not error and record.state is State.STARTING:
            record.state = State.READY
            stat = read_stat(record.process.pid) if record.process else None
            record.stack = stat.stack if stat else 0
            record.mark("ready")
            return self._result(record)
        code, number = record.exit or (None, None)  # read before it is killed: how it ended by itself
        tail = await logs.tail_soon(record.log_path, record.log_start)
        if record.state is State.ENDING:
            await record.gone.wait()  # the task that aborted the start kills it and reports that
        else:
            await self.killer.kill([record], 0)
        return self._result(record, error=error or ABORTED, log_tail=tail, exit_code=code, signal=number)

    async def _wait_ready(self, record: Record) -> str:
        """Waits until a worker is ready, has ended or is aborted; returns why it is not ready."""
        assert record.exit_future is not None
        ready = asyncio.ensure_future(self._until_ready(record))
        abort = asyncio.ensure_future(record.abort.wait())
        timeout = record.spec.start_timeout
        waiting: set[asyncio.Future[Any]] = {ready, abort, record.exit_future}
        try:
            await asyncio.wait(waiting, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        finally:
            abort.cancel()
            ready.cancel()
        if record.abort.is_set():
            return f"the process makes no progress: {record.stall}" if record.stall else ABORTED
        if record.exit is not None:
            return f"the process ended during startup: {describe_exit(record.exit.code, record.exit.signal)}"
        if not ready.done():
            return f"not ready within {timeout:g} s" + (f" ({record.waits_for})" if record.waits_for else "")
        return explained(error) if (error := ready.exception()) else ""

    async def _until_ready(self, record: Record) -> None:
        """A module is ready in either way: as a worker, or as a program of its own."""
        peer = record.peer
        ways = [asyncio.ensure_future(self._configure(record, peer))] if peer is not None else []
        if record.spec.argv is not None:
            ways.append(asyncio.ensure_future(wait_until_ready(record, self.config)))
        try:
            done, _ = await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            for way in done:
                way.result()
        finally:
            for way in ways:
                way.cancel()
        if record.socket:
            return
        if peer is not None:
            peer.close()
            record.peer = None
        await self._seed(record)

    async def _configure(self, record: Record, peer: Peer) -> None:
        """Tells an engine worker who it is; returns when it listens."""
        path = runtime.worker_socket(self.config.runtime_dir, record.worker_id)
        config = WorkerConfig(
            guard=self.config,
            worker_id=record.worker_id,
            socket=path,
            ports=record.ports,
            target_ports=record.target_ports,
            devices=record.spec.devices,
            replicas=record.spec.replicas,
            progress=record.page.path,
        )
        await peer.request(CONFIGURE.name, config, answer=CONFIGURE.answer)
        record.socket = path

    async def _seed(self, record: Record) -> None:
        """Tells a program the run's seed, in the reference system's words; it may do without."""
        if self.config.seed is None:
            return
        role, index = role_and_index(record.worker_id)
        told = {"config": {"seed": self.config.seed}, "role": role, "rank": index}
        try:
            await post(record, self.config.ip, "/configure", told)
        except (EngineCallError, RPCConnectionError) as error:
            record.warning = f"the program did not take the run's seed: {error}"

    def _result(self, record: Record, **failure: Any) -> StartResult:
        return StartResult(
            worker_id=record.worker_id,
            ok=not failure,
            pid=record.process.pid if record.process else None,
            ip=self.config.ip,
            ports=record.ports,
            socket=record.socket,
            timeline=record.timeline,
            warning=record.warning,
            log_path=record.log_path,
            **failure,
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
        problem = "readiness by a port, but no port"
        raise WorkerConfigurationError(problem, spec.port_count, "use a port_count of 1 or more")


def _completed(spec: ProcessSpec, target: ProcessSpec | None, cwd: str) -> ProcessSpec:
    """A spec with what its host gives or, for a fork, the slot of its target."""
    if target is None:
        device_var = spec.device_var or device_variable(os.environ)
        return msgspec.structs.replace(spec, device_var=device_var, cwd=spec.cwd or cwd)
    return msgspec.structs.replace(
        spec,
        devices=spec.devices or target.devices,
        device_var=target.device_var,
        cores=spec.cores or target.cores,
        cwd=spec.cwd or target.cwd,
    )
