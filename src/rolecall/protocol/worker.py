"""What a guard and an engine worker say to each other over the control channel."""

from __future__ import annotations

from typing import Any

from rolecall.protocol.guard import KillReport, LeasedPorts, Method, Nothing, PortCount
from rolecall.protocol.message import Message
from rolecall.protocol.token import CarriesToken


class WorkerConfig(CarriesToken, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a worker needs to serve: the value of the request `configure`.

    Attributes:
        socket: The Unix path to listen on.
        ip: The host's address as others see it.
        bind: The address that its TCP listener binds.
        port: The TCP port to listen on; it is the first of `ports`.
        ports: All that were leased for it.
        main_path: File of the controller's `__main__`, so that classes defined in it can be found; empty for none.
        progress: Path of the progress page; empty where nobody reads one.
        tensor_backend: Name of the backend that is asked first to store a tensor.
    """

    worker_id: str
    run_id: str
    guard_id: str
    token: str
    socket: str
    ip: str
    bind: str
    port: int
    ports: list[int] = []
    run_dir: str = ""
    main_path: str = ""
    sys_path: list[str] = []
    progress: str = ""
    log_path: str = ""
    tensor_backend: str = "shm"


class Configured(Message, frozen=True, kw_only=True):
    """The worker's answer to `configure`: it listens."""

    pid: int
    socket: str
    port: int


class WorkerEnv(Message, frozen=True, kw_only=True):
    """Variables for a living worker, or from it for its later forks: the value of the request `set_env`."""

    env: dict[str, str]


class CountPorts(Message, frozen=True, kw_only=True):
    """Leases ports for the worker that asks, until it ends."""

    count: PortCount


class Fork(Message, frozen=True, kw_only=True):
    """Starts worker `role/worker_index` in the slot of the one that asks.

    Attributes:
        command: A dotted module to run as a program; with `raw_cmd` None too, the fork hosts engines.
        raw_cmd: A program with its arguments.
    """

    role: str
    worker_index: int
    command: str | None = None
    raw_cmd: list[str] | None = None
    env: dict[str, str] = {}


class ForkOf(Fork, frozen=True, kw_only=True):
    """The same, asked for by somebody else. `target`: the worker in whose slot it shall live."""

    target: str


class Forked(Message, frozen=True, kw_only=True):
    """Answer to `fork`. `port`: the first of its ports, 0 when it has none."""

    host: str
    port: int
    pid: int


class KillFork(Message, frozen=True, kw_only=True):
    """Ends a worker that was started by `fork`."""

    role: str
    worker_index: int


ALLOC_OWN_PORTS = Method("alloc_ports", CountPorts, LeasedPorts)
FORK = Method("fork", Fork, Forked)
FORK_OF = Method("fork", ForkOf, Forked)
KILL_FORK = Method("kill_forked_worker", KillFork, KillReport)
FORKED_CHILDREN = Method("forked_children", Nothing, list[str])
SET_OWN_ENV: Method[WorkerEnv, Any] = Method("set_env", WorkerEnv, type(None))
