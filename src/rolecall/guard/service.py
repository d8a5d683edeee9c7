"""What the guard answers: the controller's methods, and the few that a worker may ask for on its control channel."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

from rolecall.errors import (
    CallCancelledError,
    ProtocolError,
    WorkerConfigurationError,
    WorkerCreationError,
    WorkerNotFoundError,
)
from rolecall.guard.table import Record
from rolecall.protocol import guard as asked
from rolecall.protocol import worker
from rolecall.protocol.guard import Method, Nothing, ProcessSpec, StartResult, WorkerRow
from rolecall.protocol.message import Message, from_plain, to_plain
from rolecall.protocol.worker_methods import AllocPorts, Fork, Forked, KillFork, SetEnv
from rolecall.transport.peer import Incoming
from rolecall.types import check_module, check_name

if TYPE_CHECKING:
    from rolecall.guard.supervisor import Guard

ANYBODY = "the guard's socket"  # in the place of the worker that has asked for a fork
Handler = Callable[[Any], Awaitable[Any]]
Q = TypeVar("Q", bound=Message)
A = TypeVar("A")


class Methods:
    """Answers requests with the coroutine of their name, each in a task of its own."""

    def __init__(self, guard: Guard) -> None:
        self._guard = guard
        self._methods: dict[str, Handler] = {}

    def dispatch(self, incoming: Incoming) -> None:
        self._guard.spawn_task(self._answer(incoming))

    async def _answer(self, incoming: Incoming) -> None:
        try:
            value = await self._call(incoming)
        except Exception as error:  # whatever it is, it is the answer
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


class ControllerRequests(Methods):
    """The controller's methods, and those of the command line."""

    def __init__(self, guard: Guard) -> None:
        super().__init__(guard)
        serve_looks(self._serve, guard)
        self._serve(asked.ALLOC_PORTS, self._alloc_ports)
        self._serve(asked.RELEASE_PORTS, self._release_ports)
        self._serve(asked.KILL, self._kill)
        self._serve(asked.SET_ENV, self._set_env)
        self._serve(asked.SHUTDOWN, self._shutdown)

    async def _call(self, incoming: Incoming) -> Any:
        """A start is ended again when its caller gives up, and streams each result as soon as it is known if asked."""
        if incoming.method != asked.START.name:
            return await super()._call(incoming)
        specs = request_of(asked.Start, incoming.args()).specs
        if not incoming.streaming:
            return to_plain(await self._guard.start(specs, on_cancel=incoming.on_cancel))

        async def tell(result: StartResult) -> None:
            with suppress(CallCancelledError):  # the controller has heard enough; the others are ended again
                await incoming.emit(to_plain(result))

        await self._guard.start(specs, tell=tell, on_cancel=incoming.on_cancel)
        return None

    async def _alloc_ports(self, wanted: asked.AllocPorts) -> asked.Ports:
        return self._guard.alloc_ports(wanted.owner, wanted.count)

    async def _release_ports(self, wanted: asked.ReleasePorts) -> list[int]:
        return self._guard.ports.release(wanted.owner)

    async def _kill(self, wanted: asked.Kill) -> asked.KillReport:
        return await self._guard.kill(wanted.workers, wanted.grace_s)

    async def _set_env(self, wanted: asked.SetEnv) -> None:
        await self._guard.set_env(wanted.worker, wanted.env)

    async def _shutdown(self, wanted: asked.Shutdown) -> asked.ShutdownReport:
        report = await self._guard.shutdown(wanted.grace_s)
        self._guard.stop("asked to by the controller")
        return report


class _Forking(Methods):
    """Forks that somebody else than the controller asks for."""

    async def fork(self, wanted: Fork, target: str, started_by: str) -> Forked:
        """Starts a worker in the slot of another one, and says where it is."""
        self._guard.table.get(target)
        argv = wanted.raw_cmd
        if wanted.command is not None:
            argv = [self._guard.config.python or sys.executable, "-m", check_module(wanted.command)]
        worker_id = f"{check_name('role', wanted.role)}/{wanted.worker_index}"
        fork = ProcessSpec(worker_id=worker_id, env=wanted.env, argv=argv, target=target)
        (result,) = await self._guard.start([fork], started_by)
        if not result.ok:
            tails = {wanted.worker_index: result.log_tail}
            raise WorkerCreationError(wanted.role, result.error, [wanted.worker_index], tails)
        return Forked(host=result.ip, port=result.ports[0] if result.ports else 0, pid=result.pid or 0)

    async def kill_fork(self, wanted: KillFork, started_by: str) -> asked.KillReport:
        """Ends such a fork."""
        worker_id = f"{wanted.role}/{wanted.worker_index}"
        forks = [record.worker_id for record in self._guard.table if record.started_by == started_by]
        if worker_id not in forks:
            raise WorkerNotFoundError(worker_id, forks)
        return await self._guard.kill([worker_id], 0.0)


class WorkerRequests(_Forking):
    """What a worker may ask for: ports of its own, and further workers in its slot."""

    def __init__(self, guard: Guard, record: Record) -> None:
        super().__init__(guard)
        self._worker = record.worker_id
        self._serve(worker.ALLOC_OWN_PORTS, self._alloc_ports)
        self._serve(worker.FORK, self._fork)
        self._serve(worker.KILL_FORK, self._kill_forked_worker)
        self._serve(worker.FORKED_CHILDREN, self._forked_children)
        self._serve(worker.SET_OWN_ENV, self._set_env)

    async def _alloc_ports(self, wanted: AllocPorts) -> asked.Ports:
        return self._guard.alloc_ports(self._worker, wanted.count)

    async def _forked_children(self, wanted: Nothing) -> list[str]:
        return [record.worker_id for record in self._guard.table if record.spec.target == self._worker]

    async def _set_env(self, wanted: SetEnv) -> None:
        await self._guard.set_env(self._worker, wanted.env)

    async def _fork(self, wanted: Fork) -> Forked:
        return await self.fork(wanted, self._worker, self._worker)

    async def _kill_forked_worker(self, wanted: KillFork) -> asked.KillReport:
        return await self.kill_fork(wanted, self._worker)


class SocketRequests(_Forking):
    """What anybody who holds the token may ask for on the guard's own socket: looking, killing, forking."""

    def __init__(self, guard: Guard) -> None:
        super().__init__(guard)
        serve_looks(self._serve, guard)
        self._serve(asked.KILL, self._kill)
        self._serve(worker.FORK_OF, self._fork)
        self._serve(worker.KILL_FORK, self._kill_forked_worker)

    async def _kill(self, wanted: asked.Kill) -> asked.KillReport:
        return await self._guard.kill(wanted.workers, wanted.grace_s, told="killed through the guard's socket")

    async def _fork(self, wanted: worker.ForkOf) -> Forked:
        return await self.fork(wanted, wanted.target, ANYBODY)

    async def _kill_forked_worker(self, wanted: KillFork) -> asked.KillReport:
        return await self.kill_fork(wanted, ANYBODY)


def serve_looks(serve: Callable[..., None], guard: Guard) -> None:
    """Adds the methods that only look."""

    async def table(wanted: Nothing) -> list[WorkerRow]:
        return [row(record) for record in guard.table]

    async def metrics(wanted: Nothing) -> dict[str, float]:
        return guard.metrics()

    async def stacks(wanted: asked.Stacks) -> str:
        return await guard.stacks(wanted.worker)

    serve(asked.TABLE, table)
    serve(asked.METRICS, metrics)
    serve(asked.STACKS, stacks)


def request_of(kind: type[Q], value: Any) -> Q:
    """The request that a caller has sent as plain values.

    Raises:
        WorkerConfigurationError: It is no such request; names the field.
    """
    try:
        return from_plain(kind, value or {}, "the caller")
    except ProtocolError as error:
        raise WorkerConfigurationError(f"bad arguments: {error}") from error


def row(record: Record) -> WorkerRow:
    """One worker for a table."""
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
