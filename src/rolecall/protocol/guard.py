"""What the controller and the command line ask of a guard, and what it answers.

`METHOD` constants pair the two, so that both sides are checked against the same types.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import NoneType
from typing import Annotated, Generic, TypeVar

import msgspec

from rolecall.protocol.message import Message
from rolecall.types import MAX_PORTS

Q = TypeVar("Q", bound=Message)
A = TypeVar("A")

PortCount = Annotated[int, msgspec.Meta(ge=1, le=MAX_PORTS)]


@dataclass(frozen=True)
class Method(Generic[Q, A]):
    """A method of a guard: what it is asked with, and what it answers."""

    name: str
    request: type[Q]
    answer: type[A]


class NoArguments(Message, frozen=True, kw_only=True):
    """The request of methods without arguments."""


class Ready(Message, frozen=True, kw_only=True):
    """How a program shows that it is ready. None of the three: it is still alive after a short settle.

    Attributes:
        http: Path that answers with a status below 400.
        tcp: It accepts connections on its first port.
        log: A regular expression that a line of its log matches.
        worker: It may serve as a worker instead (`rolecall.serve`), and is ready then.
    """

    http: str | None = None
    tcp: bool = False
    log: str | None = None
    worker: bool = False


class ProcessSpec(Message, frozen=True, kw_only=True):
    """One process to start.

    Attributes:
        env: Whole environment beyond the guard's base; for forks the target's comes first.
        argv: None hosts engines; else a program, with placeholders
            `{host} {port} {ports[1]} {role} {index} {target.port} {devices} {python}`.
        target: Fork: in the slot of this living worker, with its devices, cwd and environment as it is now.
        devices: The slot's devices, set as `device_var`; none hides all.
        device_var: The visible-devices variable; empty for that of the host's own kind of devices.
        cores: The slot's cores; 0 leaves thread counts to the libraries.
        replicas: Number of workers of its role.
        ports: Leased before with `alloc_ports(owner=worker_id)`; when empty, `port_count` are leased now.
    """

    worker_id: str
    env: dict[str, str] = {}
    argv: list[str] | None = None
    target: str | None = None
    devices: list[str] = []
    device_var: str = ""
    cores: int = 0
    replicas: int = 1
    ports: list[int] = []
    port_count: int = 2
    ready: Ready | None = None
    start_timeout: float = 120.0
    cwd: str = ""


class StartResult(Message, frozen=True, kw_only=True):
    """What became of one `ProcessSpec`.

    Attributes:
        socket: Where it serves as a worker; empty for a program that does not.
        timeline: Seconds since the request by what was reached.
        warning: What failed and is no reason not to start.
    """

    worker_id: str
    ok: bool
    pid: int | None = None
    ip: str = ""
    ports: list[int] = []
    socket: str = ""
    timeline: dict[str, float] = {}
    error: str = ""
    warning: str = ""
    exit_code: int | None = None
    signal: int | None = None
    log_tail: str = ""
    log_path: str = ""


class AllocPorts(Message, frozen=True, kw_only=True):
    """Leases ports until the worker `owner` ends, or is killed, started or not. `wanted`: rather these, where free."""

    owner: str
    count: PortCount
    wanted: list[int] = []


class Ports(Message, frozen=True, kw_only=True):
    """Answer to `alloc_ports`. `host`: the address of the guard's host."""

    ports: list[int]
    host: str


class Start(Message, frozen=True, kw_only=True):
    """Starts workers; as a stream, each result comes as soon as it is known."""

    specs: list[ProcessSpec]


class Kill(Message, frozen=True, kw_only=True):
    """Ends workers: SIGTERM, `grace_s` seconds, SIGKILL."""

    workers: list[str]
    grace_s: float = 0.0


class KillReport(Message, frozen=True, kw_only=True):
    """Answer to `kill` and `shutdown`.

    Attributes:
        killed: How each worker ended, in words, by id.
        survivors: `worker pid name` of what could not be killed; its ports stay leased.
        ports: Ports given back.
        unknown: Ids that named no worker (ended before, for instance).
        strays: `pid name` of processes that belonged to no worker any more and were killed.
    """

    killed: dict[str, str] = {}
    survivors: list[str] = []
    ports: list[int] = []
    unknown: list[str] = []
    strays: list[str] = []


class SetEnv(Message, frozen=True, kw_only=True):
    """Changes the environment of a living worker and of its later forks."""

    worker: str
    env: dict[str, str]


class Stacks(Message, frozen=True, kw_only=True):
    """Asks for the Python stacks of a worker's threads."""

    worker: str


class Shutdown(Message, frozen=True, kw_only=True):
    """Ends all workers, then the guard."""

    grace_s: float = 0.0


class WorkerRow(Message, frozen=True, kw_only=True):
    """One worker in a guard's table.

    Attributes:
        state: `starting`, `ready` or `ending`.
        rss: Resident bytes of its process tree when last seen.
        processes: How many processes belong to it.
    """

    worker: str
    state: str
    pid: int | None
    target: str | None
    ports: list[int]
    devices: list[str]
    command: list[str] | None
    rss: int
    processes: int
    log_path: str


ALLOC_PORTS = Method("alloc_ports", AllocPorts, Ports)
START = Method("start", Start, list[StartResult])
KILL = Method("kill", Kill, KillReport)
SET_ENV = Method("set_env", SetEnv, NoneType)
STACKS = Method("stacks", Stacks, str)
TABLE = Method("table", NoArguments, list[WorkerRow])
METRICS = Method("metrics", NoArguments, dict[str, float])
SHUTDOWN = Method("shutdown", Shutdown, KillReport)
