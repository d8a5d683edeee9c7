"""What the guard answers: the controller's methods, and the few that a worker may ask for on its control channel."""

from __future__ import annotations

import os
import sys
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from rolecall.errors import WorkerConfigurationError, WorkerNotFoundError
from rolecall.guard.spec import ProcessSpec
from rolecall.guard.table import Record
from rolecall.rpc.peer import Incoming

if TYPE_CHECKING:
    from rolecall.guard.supervisor import Guard

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
            value = await self.call(incoming.method, incoming.args())
        except Exception as error:  # whatever it is, it is the answer
            incoming.fail(error)
        else:
            incoming.finish(value)

    async def call(self, method: str, value: Any) -> Any:
        """Calls a method by name with plain values, and returns plain values."""
        if method not in self._methods:
            raise WorkerConfigurationError("unknown method of the guard", method, f"use one of {sorted(self._methods)}")
        return msgspec.to_builtins(await self._methods[method](value))


class _AllocPorts(msgspec.Struct):
    owner: str
    count: int


class _Start(msgspec.Struct):
    specs: list[ProcessSpec]


class _Kill(msgspec.Struct):
    workers: list[str]
    grace_s: float = 0.0


class _SetEnv(msgspec.Struct):
    worker: str
    env: dict[str, str]


class _Shutdown(msgspec.Struct):
    grace_s: float = 0.0


class _Fork(msgspec.Struct):
    role: str
    worker_index: int
    command: str | None = None
    raw_cmd: list[str] | None = None
    env: dict[str, str] = {}


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
        self._methods = {
            "alloc_ports": self._alloc_ports,
            "start": self._start,
            "kill": self._kill,
            "set_env": self._set_env,
            "table": self._table,
            "shutdown": self._shutdown,
        }

    async def _alloc_ports(self, value: Any) -> Any:
        wanted = _as(_AllocPorts, value)
        return {"ports": self._guard.ports.lease(wanted.owner, wanted.count), "host": self._guard.config.ip}

    async def _start(self, value: Any) -> Any:
        return await self._guard.start(_as(_Start, value).specs)

    async def _kill(self, value: Any) -> Any:
        wanted = _as(_Kill, value)
        return await self._guard.kill(wanted.workers, wanted.grace_s)

    async def _set_env(self, value: Any) -> Any:
        wanted = _as(_SetEnv, value)
        await self._guard.set_env(wanted.worker, wanted.env)

    async def _table(self, value: Any) -> Any:
        return [row(record) for record in self._guard.table]

    async def _shutdown(self, value: Any) -> Any:
        report = await self._guard.shutdown(_as(_Shutdown, value).grace_s)
        self._guard.stop("asked to by the controller")
        return report


class WorkerService(Methods):
    """What a worker may ask for: ports of its own, and further workers in its slot."""

    def __init__(self, guard: Guard, record: Record) -> None:
        super().__init__(guard)
        self._record = record
        self._methods = {
            "alloc_ports": self._alloc_ports,
            "fork": self._fork,
            "kill_forked_worker": self._kill_forked_worker,
        }

    async def _alloc_ports(self, value: Any) -> Any:
        count = msgspec.convert(value, dict[str, Any]).get("count")
        wanted = _as(_AllocPorts, {"owner": self._record.worker_id, "count": count})
        return {"ports": self._guard.ports.lease(wanted.owner, wanted.count), "host": self._guard.config.ip}

    async def _fork(self, value: Any) -> Any:
        wanted = _as(_Fork, value)
        argv = wanted.raw_cmd
        if wanted.command is not None:
            argv = [self._record.spec.python or sys.executable, "-m", wanted.command]
        spec = ProcessSpec(
            worker_id=f"{wanted.role}/{wanted.worker_index}", env=wanted.env, argv=argv, target=self._record.worker_id
        )
        (result,) = await self._guard.start([spec], self._record.worker_id)
        if not result.ok:
            raise WorkerConfigurationError(f"{spec.worker_id} was not started: {result.error}")
        return {"host": result.ip, "port": result.ports[0] if result.ports else 0, "pid": result.pid}

    async def _kill_forked_worker(self, value: Any) -> Any:
        wanted = _as(_Forked, value)
        worker = f"{wanted.role}/{wanted.worker_index}"
        forks = [record.worker_id for record in self._guard.table if record.started_by == self._record.worker_id]
        if worker not in forks:
            raise WorkerNotFoundError(worker, forks)
        return await self._guard.kill([worker], 0.0)


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
        "guard_pid": os.getpid(),
    }
