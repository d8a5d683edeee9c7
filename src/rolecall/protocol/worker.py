"""Requests between a guard and an engine worker, over the control channel."""

from __future__ import annotations

from types import NoneType

from rolecall.protocol.guard import KillReport, Method, NoArguments, Ports
from rolecall.protocol.message import Message
from rolecall.protocol.token import CarriesToken
from rolecall.protocol.worker_methods import AllocPorts, Fork, Forked, KillFork, SetEnv


class WorkerConfig(CarriesToken, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a worker needs to serve: the value of the request `configure`.

    Attributes:
        socket: The Unix path to listen on.
        ip: The host's address as others see it.
        bind: The address that its TCP listener binds.
        port: The TCP port to listen on; it is the first of `ports`.
        ports: All that were leased for it.
        main: What the controller runs, so that classes defined in it are found: the path of its script, or the name of
            the module that `python -m` was given; empty for none.
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
    main: str = ""
    sys_path: list[str] = []
    progress: str = ""
    log_path: str = ""
    tensor_backend: str = "shm"


class Configured(Message, frozen=True, kw_only=True):
    """The worker's answer to `configure`: it listens."""

    pid: int
    socket: str
    port: int


class ForkOf(Fork, frozen=True, kw_only=True):
    """A fork that a client of the guard's socket requests. `target`: the worker in whose slot it is started."""

    target: str


ALLOC_OWN_PORTS = Method("alloc_ports", AllocPorts, Ports)
FORK = Method("fork", Fork, Forked)
FORK_OF = Method("fork", ForkOf, Forked)
KILL_FORK = Method("kill_forked_worker", KillFork, KillReport)
FORKED_CHILDREN = Method("forked_children", NoArguments, list[str])
SET_OWN_ENV = Method("set_env", SetEnv, NoneType)
