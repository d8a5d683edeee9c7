"""Requests between a guard and an engine worker, over the control channel."""

from __future__ import annotations

from types import NoneType

from rolecall.protocol.guard import Method, NoArguments
from rolecall.protocol.token import CarriesToken
from rolecall.protocol.worker_methods import Fork, Forked, SetEnv


class WorkerConfig(CarriesToken, frozen=True, kw_only=True):
    """What a worker needs to serve: the value of the request `configure`.

    Attributes:
        socket: The Unix path to listen on.
        ip: The host's address as others see it.
        bind: The address that its TCP listener binds.
        port: The TCP port to listen on.
        ports: All that were leased for it.
        target_ports: Of the worker in whose slot a fork lives.
        devices: Its slot's.
        replicas: Number of workers of its role.
        seed: The run's; None for none.
        main: What the controller runs, so that classes defined in it are found: the path of its script, or the name of
            the module that `python -m` was given; empty for none.
        progress: Path of the progress page; empty where nobody reads one.
        tensor_backend: Name of the backend that is asked first to store a tensor.
        setup: Path of a function that is called before the first engine is made; empty for none.
        one_engine_thread: All engines have the same thread.
    """

    worker_id: str
    token: str
    socket: str
    ip: str
    bind: str
    port: int
    ports: list[int] = []
    target_ports: list[int] = []
    devices: list[str] = []
    replicas: int = 1
    run_dir: str = ""
    seed: int | None = None
    main: str = ""
    sys_path: list[str] = []
    progress: str = ""
    tensor_backend: str = "shm"
    setup: str = ""
    one_engine_thread: bool = False


class ForkOf(Fork, frozen=True, kw_only=True):
    """A fork that a client of the guard's socket requests. `target`: the worker in whose slot it is started."""

    target: str


CONFIGURE = Method("configure", WorkerConfig, NoneType)  # answered when it listens
SET_ENV = Method("set_env", SetEnv, NoneType)
TASKS = Method("tasks", NoArguments, str)  # the stacks of its event loop's tasks
FORK_OF = Method("fork", ForkOf, Forked)
FORKED_CHILDREN = Method("forked_children", NoArguments, list[str])
