"""Answers the requests that a guard gets: from the controller, from its workers, and on its own socket."""

from __future__ import annotations

import asyncio
import inspect
import socket
from collections.abc import Callable, Coroutine
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

from rolecall.errors import (
    CallCancelledError,
    PortAllocationError,
    ProtocolError,
    RolecallError,
    WorkerConfigurationError,
    WorkerCreationError,
    WorkerNotFoundError,
    told,
)
from rolecall.guard.supervisor import METRICS, Supervisor
from rolecall.guard.table import Record
from rolecall.protocol import guard as protocol
from rolecall.protocol.guard import Method, ProcessSpec, StartResult
from rolecall.protocol.guard_config import GuardConfig
from rolecall.protocol.message import Message, from_plain, to_plain
from rolecall.protocol.programs import program
from rolecall.protocol.worker_methods import (
    CALLER,
    FORK_OF,
    FORKED_CHILDREN,
    METHODS,
    Done,
    Fork,
    Forked,
    KillFork,
    WorkerMethod,
)
from rolecall.transport.http.messages import HttpError, Request, Response, json_response
from rolecall.transport.http.metrics import metrics_response
from rolecall.transport.http.router import Routes
from rolecall.transport.peer import Incoming, Peer
from rolecall.transport.server import Hello, Server
from rolecall.types import check_name

SOCKET_CLIENT = "the guard's socket"  # `Record.started_by` of a fork that no worker has requested
Q = TypeVar("Q", bound=Message)
_STATUS = {WorkerNotFoundError: 404, WorkerConfigurationError: 400, PortAllocationError: 409}


class RequestHandler:
    """Answers requests with the function of their name, each in a task of its own."""

    def __init__(self, spawn_task: Callable[[Coroutine[Any, Any, Any]], None]) -> None:
        self._spawn_task = spawn_task
        self._methods: dict[str, tuple[type[Any], Callable[[Any], Any]]] = {}

    def dispatch(self, incoming: Incoming) -> None:
        self._spawn_task(self._answer(incoming))

    async def _answer(self, incoming: Incoming) -> None:
        try:
            incoming.finish(await self._call(incoming))
        except Exception as error:  # the caller gets it
            incoming.fail(told(f"the guard on {socket.gethostname()}", error))

    async def _call(self, incoming: Incoming) -> Any:
        return await self._called(incoming.method, lambda kind: incoming.message(kind, CALLER))

    async def call(self, method: str, value: Any) -> Any:
        """Calls a method by name with plain values, and returns plain values."""
        return to_plain(await self._called(method, lambda kind: from_plain(kind, value or {}, CALLER)))

    async def _called(self, name: str, request: Callable[[type[Any]], Any]) -> Any:
        if name not in self._methods:
            raise WorkerConfigurationError("unknown method of the guard", name, f"use one of {sorted(self._methods)}")
        kind, answer = self._methods[name]
        value = answer(well_formed(kind, request))
        return await value if inspect.isawaitable(value) else value

    def _serve(self, method: Method[Q, Any] | WorkerMethod, answer: Callable[[Q], Any]) -> None:
        """Has requests of a method answered by `answer`, which may be a coroutine function."""
        assert method.request is not None
        self._methods[method.name] = method.request, answer


class CommonRequests(RequestHandler):
    """What the controller and the clients of the guard's socket may both ask."""

    def __init__(self, supervisor: Supervisor) -> None:
        super().__init__(supervisor.spawn_task)
        self._supervisor = supervisor
        self._serve(protocol.ALLOC_PORTS, lambda r: supervisor.alloc_ports(r.owner, r.count, r.wanted))
        self._serve(protocol.TABLE, lambda _: [record.row() for record in supervisor.table.values()])
        self._serve(protocol.METRICS, lambda _: supervisor.metrics())
        self._serve(protocol.STACKS, lambda request: supervisor.stacks(request.worker))
        self._serve(protocol.KILL, self._kill)

    async def _kill(self, request: protocol.Kill) -> protocol.KillReport:
        return await self._supervisor.kill(request.workers, request.grace_s, reason=f"killed through {SOCKET_CLIENT}")


class ControllerRequests(CommonRequests):
    """Requests of the controller."""

    def __init__(self, supervisor: Supervisor, stop: Callable[[str], None]) -> None:
        super().__init__(supervisor)
        self._stop = stop
        self._serve(protocol.SET_ENV, lambda request: supervisor.set_env(request.worker, request.env))
        self._serve(protocol.SHUTDOWN, self._shutdown)

    async def _call(self, incoming: Incoming) -> Any:
        """Ends what a start has started when its caller gives up. A stream gets each result as soon as it is known."""
        if incoming.method != protocol.START.name:
            return await super()._call(incoming)

        async def send(result: StartResult) -> None:
            with suppress(CallCancelledError):  # the controller has given up; the others are ended again
                await incoming.emit(result)

        specs = well_formed(protocol.Start, lambda kind: incoming.message(kind, CALLER)).specs
        on_result = send if incoming.streaming else None
        results = await self._supervisor.launcher.start(specs, on_result=on_result, on_cancel=incoming.on_cancel)
        return None if incoming.streaming else results

    async def _kill(self, request: protocol.Kill) -> protocol.KillReport:
        report = await self._supervisor.kill(request.workers, request.grace_s)
        for owner in report.unknown:  # its ports were leased, and it may never have been asked for
            self._supervisor.ports.release(owner)
        return report

    async def _shutdown(self, request: protocol.Shutdown) -> protocol.KillReport:
        report = await self._supervisor.shutdown(request.grace_s)
        self._stop("asked to by the controller")
        return report


class SocketRequests(CommonRequests):
    """Requests on the guard's own socket, from the command line or any other holder of the token."""

    def __init__(self, supervisor: Supervisor) -> None:
        super().__init__(supervisor)
        self._serve(FORK_OF, lambda request: fork(supervisor, request, request.target, SOCKET_CLIENT))
        self._serve(METHODS["kill_forked_worker"], lambda request: kill_fork(supervisor, request, SOCKET_CLIENT))


class WorkerRequests(RequestHandler):
    """Requests of a worker on its control channel: ports of its own, and further workers in its slot."""

    def __init__(self, supervisor: Supervisor, record: Record) -> None:
        super().__init__(supervisor.spawn_task)
        worker = record.worker_id

        async def done(work: Coroutine[Any, Any, Any]) -> Done:
            await work
            return Done()

        self._serve(METHODS["alloc_ports"], lambda request: supervisor.alloc_ports(worker, request.count))
        self._serve(METHODS["set_env"], lambda request: done(supervisor.set_env(worker, request.env)))
        self._serve(METHODS["fork"], lambda request: fork(supervisor, request, worker, worker))
        self._serve(METHODS["kill_forked_worker"], lambda request: done(kill_fork(supervisor, request, worker)))
        self._serve(FORKED_CHILDREN, lambda _: [w for w, r in supervisor.table.items() if r.spec.target == worker])


def guard_server(supervisor: Supervisor, config: GuardConfig, loop: asyncio.AbstractEventLoop) -> Server:
    """The guard's own server, plain HTTP: it answers on `<runtime_dir>/<guard_id>.sock` once it listens there."""
    requests = SocketRequests(supervisor)

    def refuse_frames(hello: Hello) -> Peer:
        raise ProtocolError("a guard's socket takes HTTP alone")

    async def health(request: Request) -> Response:
        known = {"guard_id": config.guard_id, "run_id": config.run_id, "workers": len(supervisor.table)}
        return json_response({"status": "ok", **known})

    async def metrics(request: Request) -> Response:
        labels = {"guard": config.guard_id}
        return metrics_response(request, "rolecall_guard", labels, supervisor.metrics(), METRICS)

    async def answer(method: str, request: Request) -> Response:
        try:
            return json_response(await requests.call(method, request.json()))
        except RolecallError as error:
            raise HttpError(_STATUS.get(type(error), 500), str(error)) from error

    routes = Routes()
    routes.add("GET", "/health", health)
    routes.add("GET", "/metrics", metrics)
    routes.add("GET", "/workers", partial(answer, "table"))
    for method in ("stacks", "kill", "alloc_ports", "fork", "kill_forked_worker"):
        routes.add("POST", f"/{method}", partial(answer, method))
    return Server(config.token, loop=loop, on_peer=refuse_frames, http=routes)


async def fork(supervisor: Supervisor, request: Fork, target: str, started_by: str) -> Forked:
    """Starts a worker in the slot of another one, and says where it is."""
    supervisor.table.living(target)
    command = request.command if request.command is not None else request.raw_cmd
    argv, ready = program(command) if command is not None else (None, None)
    worker_id = f"{check_name('role', request.role)}/{request.worker_index}"
    spec = ProcessSpec(worker_id=worker_id, env=request.env, argv=argv, ready=ready, target=target)
    (result,) = await supervisor.launcher.start([spec], started_by)
    if not result.ok:
        tails = {request.worker_index: result.log_tail}
        raise WorkerCreationError(request.role, result.error, [request.worker_index], tails)
    return Forked(host=result.ip, port=result.ports[0] if result.ports else 0, pid=result.pid or 0)


async def kill_fork(supervisor: Supervisor, request: KillFork, started_by: str) -> protocol.KillReport:
    """Kills a fork that the same `started_by` has requested."""
    worker_id = f"{request.role}/{request.worker_index}"
    forks = [worker for worker, record in supervisor.table.items() if record.started_by == started_by]
    if worker_id not in forks:
        raise WorkerNotFoundError(worker_id, forks)
    return await supervisor.kill([worker_id], supervisor.launcher.config.grace_s)


def well_formed(kind: type[Q], read: Callable[[type[Q]], Q]) -> Q:
    """The request that `read` decodes.

    Raises:
        WorkerConfigurationError: A field is unknown, missing or of another type; the message names it.
    """
    try:
        return read(kind)
    except ProtocolError as error:
        raise WorkerConfigurationError(str(error)) from error
