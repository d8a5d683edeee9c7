"""Answers the requests that a guard gets: from the controller, from its workers, and on its own socket."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeVar

from rolecall.errors import (
    CallCancelledError,
    ProtocolError,
    WorkerConfigurationError,
    WorkerCreationError,
    WorkerNotFoundError,
)
from rolecall.guard.supervisor import Supervisor
from rolecall.guard.table import Record
from rolecall.protocol import guard as protocol
from rolecall.protocol import worker
from rolecall.protocol.guard import Method, NoArguments, ProcessSpec, StartResult, WorkerRow
from rolecall.protocol.message import Message, from_plain, to_plain
from rolecall.protocol.worker_methods import CALLER, AllocPorts, Fork, Forked, KillFork, SetEnv
from rolecall.transport.peer import Incoming
from rolecall.types import check_module, check_name

SOCKET_CLIENT = "the guard's socket"  # `Record.started_by` of a fork that no worker has requested
Q = TypeVar("Q", bound=Message)
A = TypeVar("A")


class RequestHandler:
    """Answers requests with the coroutine of their name, each in a task of its own."""

    def __init__(self, spawn_task: Callable[[Coroutine[Any, Any, Any]], None]) -> None:
        self._spawn_task = spawn_task
        self._methods: dict[str, Callable[[Any], Awaitable[Any]]] = {}

    def dispatch(self, incoming: Incoming) -> None:
        self._spawn_task(self._answer(incoming))

    async def _answer(self, incoming: Incoming) -> None:
        try:
            value = await self._call(incoming)
        except Exception as error:  # the caller gets it
            incoming.fail(error)
        else:
            incoming.finish(value)

    async def _call(self, incoming: Incoming) -> Any:
        return await self.call(incoming.method, incoming.args())

    async def call(self, method: str, value: Any) -> Any:
        """Calls a method by name with plain values, and returns plain values."""
        if method not in self._methods:
            raise WorkerConfigurationError("unknown method of the guard", method, f"use one of {sorted(self._methods)}")
        return to_plain(await self._methods[method](value))

    def _serve(self, method: Method[Q, A], answer: Callable[[Q], Awaitable[A]]) -> None:
        """Has requests of a method answered by `answer`."""
        self._methods[method.name] = lambda value: answer(request_of(method.request, value))


class ControllerRequests(RequestHandler):
    """Requests of the controller."""

    def __init__(self, supervisor: Supervisor, stop: Callable[[str], None]) -> None:
        super().__init__(supervisor.spawn_task)
        self._supervisor, self._stop = supervisor, stop
        serve_common(self._serve, supervisor)
        self._serve(protocol.KILL, self._kill)
        self._serve(protocol.SET_ENV, self._set_env)
        self._serve(protocol.SHUTDOWN, self._shutdown)

    async def _call(self, incoming: Incoming) -> Any:
        """Ends what a start has started when its caller gives up. A stream gets each result as soon as it is known."""
        if incoming.method != protocol.START.name:
            return await self.call(incoming.method, incoming.args())
        specs = request_of(protocol.Start, incoming.args()).specs
        if not incoming.streaming:
            return to_plain(await self._supervisor.start(specs, on_cancel=incoming.on_cancel))

        async def send(result: StartResult) -> None:
            with suppress(CallCancelledError):  # the controller has given up; the others are ended again
                await incoming.emit(to_plain(result))

        await self._supervisor.start(specs, on_result=send, on_cancel=incoming.on_cancel)
        return None

    async def _kill(self, request: protocol.Kill) -> protocol.KillReport:
        report = await self._supervisor.kill(request.workers, request.grace_s)
        for owner in report.unknown:  # its ports were leased, and it may never have been asked for
            self._supervisor.ports.release(owner)
        return report

    async def _set_env(self, request: protocol.SetEnv) -> None:
        await self._supervisor.set_env(request.worker, request.env)

    async def _shutdown(self, request: protocol.Shutdown) -> protocol.ShutdownReport:
        report = await self._supervisor.shutdown(request.grace_s)
        self._stop("asked to by the controller")
        return report


class ForkRequests(RequestHandler):
    """Forks, and the end of forks, for those who are not the controller."""

    def __init__(self, supervisor: Supervisor) -> None:
        super().__init__(supervisor.spawn_task)
        self._supervisor = supervisor

    async def fork(self, request: Fork, target: str, started_by: str) -> Forked:
        """Starts a worker in the slot of another one, and says where it is."""
        self._supervisor.table.get(target)
        argv = request.raw_cmd
        if request.command is not None:
            argv = [self._supervisor.config.python or sys.executable, "-m", check_module(request.command)]
        worker_id = f"{check_name('role', request.role)}/{request.worker_index}"
        fork = ProcessSpec(worker_id=worker_id, env=request.env, argv=argv, target=target)
        (result,) = await self._supervisor.start([fork], started_by)
        if not result.ok:
            tails = {request.worker_index: result.log_tail}
            raise WorkerCreationError(request.role, result.error, [request.worker_index], tails)
        return Forked(host=result.ip, port=result.ports[0] if result.ports else 0, pid=result.pid or 0)

    async def kill_fork(self, request: KillFork, started_by: str) -> protocol.KillReport:
        """Kills a fork that the same `started_by` has requested."""
        worker_id = f"{request.role}/{request.worker_index}"
        forks = [record.worker_id for record in self._supervisor.table if record.started_by == started_by]
        if worker_id not in forks:
            raise WorkerNotFoundError(worker_id, forks)
        return await self._supervisor.kill([worker_id], 0.0)


class WorkerRequests(ForkRequests):
    """Requests of a worker on its control channel: ports of its own, and further workers in its slot."""

    def __init__(self, supervisor: Supervisor, record: Record) -> None:
        super().__init__(supervisor)
        self._worker = record.worker_id
        self._serve(worker.ALLOC_OWN_PORTS, self._alloc_ports)
        self._serve(worker.FORK, self._fork)
        self._serve(worker.KILL_FORK, self._kill_forked_worker)
        self._serve(worker.FORKED_CHILDREN, self._forked_children)
        self._serve(worker.SET_OWN_ENV, self._set_env)

    async def _alloc_ports(self, request: AllocPorts) -> protocol.Ports:
        return self._supervisor.alloc_ports(self._worker, request.count)

    async def _forked_children(self, request: NoArguments) -> list[str]:
        return [record.worker_id for record in self._supervisor.table if record.spec.target == self._worker]

    async def _set_env(self, request: SetEnv) -> None:
        await self._supervisor.set_env(self._worker, request.env)

    async def _fork(self, request: Fork) -> Forked:
        return await self.fork(request, self._worker, self._worker)

    async def _kill_forked_worker(self, request: KillFork) -> protocol.KillReport:
        return await self.kill_fork(request, self._worker)


class SocketRequests(ForkRequests):
    """Requests on the guard's own socket, from the command line or any other holder of the token."""

    def __init__(self, supervisor: Supervisor) -> None:
        super().__init__(supervisor)
        serve_common(self._serve, supervisor)
        self._serve(protocol.KILL, self._kill)
        self._serve(worker.FORK_OF, self._fork)
        self._serve(worker.KILL_FORK, self._kill_forked_worker)

    async def _kill(self, request: protocol.Kill) -> protocol.KillReport:
        return await self._supervisor.kill(request.workers, request.grace_s, reason="killed through the guard's socket")

    async def _fork(self, request: worker.ForkOf) -> Forked:
        return await self.fork(request, request.target, SOCKET_CLIENT)

    async def _kill_forked_worker(self, request: KillFork) -> protocol.KillReport:
        return await self.kill_fork(request, SOCKET_CLIENT)


def serve_common(serve: Callable[..., None], supervisor: Supervisor) -> None:
    """Adds the methods that the controller and the clients of the guard's socket share."""

    async def alloc_ports(request: protocol.AllocPorts) -> protocol.Ports:
        return supervisor.alloc_ports(request.owner, request.count)

    async def table(request: NoArguments) -> list[WorkerRow]:
        return [row(record) for record in supervisor.table]

    async def metrics(request: NoArguments) -> dict[str, float]:
        return supervisor.metrics()

    async def stacks(request: protocol.Stacks) -> str:
        return await supervisor.stacks(request.worker)

    serve(protocol.ALLOC_PORTS, alloc_ports)
    serve(protocol.TABLE, table)
    serve(protocol.METRICS, metrics)
    serve(protocol.STACKS, stacks)


def request_of(kind: type[Q], value: Any) -> Q:
    """Decodes the request that a caller has sent as plain values.

    Raises:
        WorkerConfigurationError: A field is unknown, missing or of another type; the message names it.
    """
    try:
        return from_plain(kind, value or {}, CALLER)
    except ProtocolError as error:
        raise WorkerConfigurationError(str(error)) from error


def row(record: Record) -> WorkerRow:
    """One worker as the answer to `table` shows it."""
    return WorkerRow(
        worker=record.worker_id,
        state=str(record.state),
        pid=record.process.pid if record.process else None,
        target=record.spec.target,
        ports=record.ports,
        devices=record.spec.devices,
        command=record.spec.argv,
        rss=record.rss,
        processes=len(record.tracked),
        log_path=record.log_path,
    )
