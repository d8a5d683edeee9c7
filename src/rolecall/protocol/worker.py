"""Requests between a guard and an engine worker, over the control channel."""

from __future__ import annotations

from types import NoneType

from rolecall.protocol.guard import Method, NoArguments
from rolecall.protocol.guard_config import RunFacts
from rolecall.protocol.worker_methods import Fork, Forked, SetEnv


class WorkerConfig(RunFacts, frozen=True, kw_only=True):
    """What a worker needs to serve: the value of the request `configure`.

    Attributes:
        socket: The Unix path to listen on.
        port: The TCP port to listen on.
        ports: All that were leased for it.
        target_ports: Of the worker in whose slot a fork lives.
        devices: Its slot's.
        replicas: Number of workers of its role.
        progress: Path of the progress page; empty where nobody reads one.
    """

    worker_id: str
    socket: str
    port: int
    ports: list[int] = []
    target_ports: list[int] = []
    devices: list[str] = []
    replicas: int = 1
    progress: str = ""


class ForkOf(Fork, frozen=True, kw_only=True):
    """A fork that a client of the guard's socket requests. `target`: the worker in whose slot it is started."""

    target: str


CONFIGURE = Method("configure", WorkerConfig, NoneType)  # answered when it listens
SET_ENV = Method("set_env", SetEnv, NoneType)
TASKS = Method("tasks", NoArguments, str)  # the stacks of its event loop's tasks
FORK_OF = Method("fork", ForkOf, Forked)
FORKED_CHILDREN = Method("forked_children", NoArguments, list[str])
