"""What the guard answers: the controller's methods, and the few that a worker may ask for on its control channel."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import msgspec

from rolecall.errors import CallCancelledError, WorkerConfigurationError, WorkerCreationError, WorkerNotFoundError
from rolecall.guard.table import Record
from rolecall.protocol.guard import ProcessSpec, StartResult
from rolecall.transport.peer import Incoming
from rolecall.types import MAX_PORTS, check_module, check_name

if TYPE_CHECKING:
    from rolecall.guard.supervisor import Guard

PortCount = Annotated[int, msgspec.Meta(ge=1, le=MAX_PORTS)]
ANYBODY = "the guard's socket"  # in the place of the worker that has asked for a fork
Method = Callable[[Any], Awaitable[Any]]
T = TypeVar("T", bound=msgspec.Struct)


class Methods:
    """Answers requests with the coroutine of their name, each in a task of its own."""

    def __init__(self, guard: Guard) -> None:
        self._guard = guard
        self._methods: dict[str, Method] = {}

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
        return msgspec.to_builtins(await self._methods[method](value))


class _AllocPorts(msgspec.Struct):
    owner: str
    count: PortCount


class _Count(msgspec.Struct):
    count: PortCount


class _Owner(msgspec.Struct):
    owner: str


class _Stacks(msgspec.Struct):
    worker: str


class _Start(msgspec.Struct):
    specs: list[ProcessSpec]


class _Kill(msgspec.Struct):
    workers: list[str]
    grace_s: float = 0.0


class _SetEnv(msgspec.Struct):
    worker: str
    env: dict[str, str]


class _Env(msgspec.Struct):
    env: dict[str, str]


class _Shutdown(msgspec.Struct):
    grace_s: float = 0.0


class _Fork(msgspec.Struct):
    role: str
    worker_index: int
    command: str | None = None
    raw_cmd: list[str] | None = None
    env: dict[str, str] = {}


class _LocalFork(_Fork, kw_only=True):
    target: str


class _Forked(msgspec.Struct):
    role: str
    worker_index: int


def _as(kind: type[T], value: Any) -> T:
    try:
        return msgspec.convert(value or {}, kind)
    except msgspec.ValidationError as error:
        raise WorkerConfigurationError(f"bad arguments: {error}") from error


class ControllerService(Methods):
    """The controller's methods, and those of the command line."""

    def __init__(self, guard: Guard) -> None:
        super().__init__(guard)
        self._methods = looking(guard) | {
            "alloc_ports": self._alloc_ports,
            "release_ports": self._release_ports,
            "kill": self._kill,
            "set_env": self._set_env,
            "shutdown": self._shutdown,
        }

    async def _alloc_ports(self, value: Any) -> Any:
        wanted = _as(_AllocPorts, value)
        return self._guard.alloc_ports(wanted.owner, wanted.count)

    async def _release_ports(self, value: Any) -> Any:
        return self._guard.ports.release(_as(_Owner, value).owner)

    async def _call(self, incoming: Incoming) -> Any:
        """A start is ended again when its caller gives up, and streams each result as soon as it is known if asked."""
        if incoming.method != "start":
            return await super()._call(incoming)
        specs = _as(_Start, incoming.args()).specs
        if not incoming.streaming:
            return msgspec.to_builtins(await self._guard.start(specs, on_cancel=incoming.on_cancel))

        async def tell(result: StartResult) -> None:
            with suppress(CallCancelledError):  # the controller has heard enough; the others are ended again
                await incoming.emit(msgspec.to_builtins(result))

        await self._guard.start(specs, tell=tell, on_cancel=incoming.on_cancel)
        return None

    async def _kill(self, value: Any) -> Any:
        wanted = _as(_Kill, value)
        return await self._guard.kill(wanted.workers, wanted.grace_s)

    async def _set_env(self, value: Any) -> Any:
        wanted = _as(_SetEnv, value)
        await self._guard.set_env(wanted.worker, wanted.env)

    async def _shutdown(self, value: Any) -> Any:
        report = await self._guard.shutdown(_as(_Shutdown, value).grace_s)
        self._guard.stop("asked to by the controller")
        return report


class _Forking(Methods):
    """Forks that somebody else than the controller asks for."""

    async def fork(self, wanted: _Fork, target: str, started_by: str) -> Any:
        """Starts a worker in the slot of another one, and says where it is."""
        spec = self._guard.table.get(target).spec
        argv = wanted.raw_cmd
        if wanted.command is not None:
            argv = [spec.python or self._guard.config.python or sys.executable, "-m", check_module(wanted.command)]
        worker_id = f"{check_name('role', wanted.role)}/{wanted.worker_index}"
        fork = ProcessSpec(worker_id=worker_id, env=wanted.env, argv=argv, target=target)
        (result,) = await self._guard.start([fork], started_by)
        if not result.ok:
            tails = {wanted.worker_index: result.log_tail}
            raise WorkerCreationError(wanted.role, result.error, [wanted.worker_index], tails)
        return {"host": result.ip, "port": result.ports[0] if result.ports else 0, "pid": result.pid}

    async def kill_fork(self, wanted: _Forked, started_by: str) -> Any:
        """Ends such a fork."""
        worker = f"{wanted.role}/{wanted.worker_index}"
        forks = [record.worker_id for record in self._guard.table if record.started_by == started_by]
        if worker not in forks:
            raise WorkerNotFoundError(worker, forks)
        return await self._guard.kill([worker], 0.0)


class WorkerService(_Forking):
    """What a worker may ask for: ports of its own, and further workers in its slot."""

    def __init__(self, guard: Guard, record: Record) -> None:
        super().__init__(guard)
        self._worker = record.worker_id
        self._methods = {
            "alloc_ports": self._alloc_ports,
            "fork": self._fork,
            "kill_forked_worker": self._kill_forked_worker,
            "forked_children": self._forked_children,
            "set_env": self._set_env,
        }

    async def _alloc_ports(self, value: Any) -> Any:
        return self._guard.alloc_ports(self._worker, _as(_Count, value).count)

    async def _forked_children(self, value: Any) -> Any:
        return [record.worker_id for record in self._guard.table if record.spec.target == self._worker]

    async def _set_env(self, value: Any) -> Any:
        await self._guard.set_env(self._worker, _as(_Env, value).env)

    async def _fork(self, value: Any) -> Any:
        return await self.fork(_as(_Fork, value), self._worker, self._worker)

    async def _kill_forked_worker(self, value: Any) -> Any:
        return await self.kill_fork(_as(_Forked, value), self._worker)


class LocalService(_Forking):
    """What whoever holds the token may ask for on the guard's own socket: looking, killing, forking."""

    def __init__(self, guard: Guard) -> None:
        super().__init__(guard)
        self._methods = looking(guard) | {
            "kill": self._kill,
            "fork": self._fork,
            "kill_forked_worker": self._kill_forked_worker,
        }

    async def _kill(self, value: Any) -> Any:
        wanted = _as(_Kill, value)
        return await self._guard.kill(wanted.workers, wanted.grace_s, told="killed through the guard's socket")

    async def _fork(self, value: Any) -> Any:
        wanted = _as(_LocalFork, value)
        return await self.fork(wanted, wanted.target, ANYBODY)

    async def _kill_forked_worker(self, value: Any) -> Any:
        return await self.kill_fork(_as(_Forked, value), ANYBODY)


def looking(guard: Guard) -> dict[str, Method]:
    """The methods that only look."""

    async def table(value: Any) -> Any:
        return [row(record) for record in guard.table]

    async def metrics(value: Any) -> Any:
        return guard.metrics()

    async def stacks(value: Any) -> Any:
        return await guard.stacks(_as(_Stacks, value).worker)

    return {"table": table, "metrics": metrics, "stacks": stacks}


def row(record: Record) -> dict[str, Any]:
    """One worker for a table."""
    return {
        "worker": record.worker_id,
        "state": str(record.state),
        "pid": record.process.pid if record.process else None,
        "target": record.spec.target,
        "ports": record.ports,
        "devices": record.spec.devices,
        "command": record.spec.argv,
        "rss": record.rss,
        "processes": len(record.tracked),
        "log_path": record.log_path,
    }
