"""Requests between a guard and an engine worker, over the control channel."""

from __future__ import annotations

from types import NoneType

from rolecall.protocol.guard import Method, NoArguments
from rolecall.protocol.guard_config import GuardConfig
from rolecall.protocol.message import Message
from rolecall.protocol.worker_methods import Fork, Forked, SetEnv


class WorkerConfig(Message, frozen=True, kw_only=True):
    """What a worker needs to serve: the value of the request `configure`.

    Attributes:
        guard: Its guard's configuration, with what concerns the run.
        socket: The Unix path to listen on.
        ports: All that were leased for it; it listens on the first.
        target_ports: Of the worker in whose slot a fork lives.
        devices: Its slot's.
        replicas: Number of workers of its role.
        progress: Path of the progress page; empty where nobody reads one.
    """

    guard: GuardConfig
    worker_id: str
    socket: str
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
