"""The values of the public interface: Job, SchedulingSpec, SchedulingStrategy, Worker. They are validated when made.

Names and meanings of the fields are those of AReaL's scheduler, so that programs written for it need few changes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from rolecall.errors import WorkerConfigurationError

TaskType = Literal["worker", "engine"]
ContainerType = Literal["apptainer", "none"]
RayPlacementStrategy = Literal["shared", "separate", "deferred"]
StrategyType = Literal["separation", "colocation"]
TensorPolicy = Literal["local", "remote"]
WorkerSetup = str | Callable[[], object]
TensorBackend = Literal["shm", "wire", "ray"]

MAX_PORTS = 4096  # per worker; a guard refuses more, since it tries every port before it leases it
MAX_SECONDS = 1e9  # about thirty years; every timer of the standard library accepts that

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")


def check_name(kind: str, name: str) -> str:
    """Returns `name` if it is safe as part of a path, of an id and of an environment variable.

    Raises:
        WorkerConfigurationError: It is not; the message lists the allowed characters.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        expected = "use 1 to 63 letters, digits, '_', '-' or '.', the first a letter or digit"
        raise WorkerConfigurationError(f"bad {kind} name", name, expected)
    return name


def check_one_of(what: str, value: str, literal: object) -> None:
    """Raises WorkerConfigurationError unless `value` is one of a `Literal`."""
    if value not in get_args(literal):
        raise WorkerConfigurationError(f"unknown {what}", value, f"use one of {', '.join(get_args(literal))}")


def _at_least(what: str, value: float, low: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or value < low:
        raise WorkerConfigurationError(f"bad {what}", value, f"use {low} or more")


@dataclass(frozen=True)
class Worker:
    """A worker and its addresses.

    Attributes:
        id: `role/index`.
        ip: Address of its host as seen from the controller.
        worker_ports: Index 0 is the worker's own server; 1 and up are free for the user (1 is MASTER_PORT of the role's
            process group).
        engine_ports: Always empty; AReaL's code reads it. `current_worker().alloc_ports(n)` returns ports to who asks.
    """

    id: str
    ip: str
    worker_ports: list[str] = field(default_factory=list)
    engine_ports: list[str] = field(default_factory=list)

    @property
    def role(self) -> str:
        return role_and_index(self.id)[0]

    @property
    def index(self) -> int:
        return role_and_index(self.id)[1]


CLUSTER_FIELDS = ("image", "mount", "nodelist", "exclude", "srun_additional_args", "additional_bash_cmds")


@dataclass(frozen=True)
class SchedulingSpec:
    """The resources of one worker. `cpu` in cores, `mem` in GiB, `gpu` in whole devices.

    On one machine `cpu` sets the number of threads (at most the number of cores) and `mem` is not enforced; fields that
    apply only to a cluster (`CLUSTER_FIELDS`) are ignored with a warning, so that one script runs on both. `task_type`
    is accepted for compatibility with AReaL and has no effect.

    Attributes:
        cmd: A program that the worker runs instead of hosting engines: a dotted module, which gets the arguments
            `--host --port --role --worker-index --experiment-name --trial-name`, or a list with placeholders
            `{host} {port} {ports[1]} {role} {index} {experiment} {trial} {devices} {python}`, of a fork also
            `{target.host} {target.port} {target.ports[1]}`. See docs/http.md for those that host engines all the same.
        ready: When that program is ready: an HTTP path such as `"/health"` answers, `"tcp"`: it listens on its first
            port, or `{"log": "regex"}`: a line of its log matches. None: a module's `/health` answers (or it has called
            `rolecall.serve`); a list that names its first port listens there; any other runs for 0.3 s.
    """

    cpu: int = 1
    gpu: int = 0
    mem: int = 4
    port_count: int = 2
    image: str | None = None
    task_type: TaskType = "worker"
    env_vars: dict[str, str] = field(default_factory=dict)
    cmd: str | Sequence[str] | None = None
    srun_additional_args: str | None = None
    additional_bash_cmds: Sequence[str] | None = None
    container_type: ContainerType = "apptainer"
    mount: str | None = None
    nodelist: str | None = None
    exclude: str | None = None
    ray_placement_strategy: RayPlacementStrategy = "shared"
    ready: str | dict[str, Any] | None = None

    def __post_init__(self) -> None:
        _at_least("cpu", self.cpu, 0)
        _at_least("gpu", self.gpu, 0)
        _at_least("mem", self.mem, 0)
        _at_least("port_count", self.port_count, 1)
        if self.port_count > MAX_PORTS:
            raise WorkerConfigurationError("bad port_count", self.port_count, f"use 1 to {MAX_PORTS}")
        check_one_of("task_type", self.task_type, TaskType)
        check_one_of("container_type", self.container_type, ContainerType)
        check_one_of("ray_placement_strategy", self.ray_placement_strategy, RayPlacementStrategy)
        if self.ready is not None and self.cmd is None:
            raise WorkerConfigurationError(
                "ready= without cmd= (of a fork: command=)",
                self.ready,
                "leave it out: workers that host engines say so",
            )
        readiness(self.ready)
        for key, value in self.env_vars.items():
            check_env(key, value)


def readiness(ready: str | dict[str, Any] | None) -> dict[str, Any] | None:
    """The readiness condition in the form that guards read: `{"http": path}`, `{"tcp": True}` or `{"log": regex}`."""
    if ready is None or (isinstance(ready, dict) and len(ready) == 1 and set(ready) <= {"http", "tcp", "log"}):
        return ready
    if isinstance(ready, str) and ready.startswith("/"):
        return {"http": ready}
    if ready == "tcp":
        return {"tcp": True}
    raise WorkerConfigurationError("bad readiness", ready, "use an HTTP path, 'tcp', or {'log': 'regex'}")


def check_seconds(what: str, seconds: float, least: float = 0) -> None:
    """Checks a time limit.

    Raises:
        WorkerConfigurationError: It is not a number, is out of range, or is NaN, with which a wait would never end.
    """
    known = isinstance(seconds, int | float) and not isinstance(seconds, bool)
    if not known or not least <= seconds <= MAX_SECONDS:
        raise WorkerConfigurationError(f"bad {what}", seconds, f"use a number of seconds, {least:g} to {MAX_SECONDS:g}")


def check_count(what: str, count: int | None, most: int = 1 << 40) -> None:
    """Checks an optional count.

    Raises:
        WorkerConfigurationError: It is neither None nor a whole number from 0 to `most`.
    """
    if count is not None and (isinstance(count, bool) or not isinstance(count, int) or not 0 <= count <= most):
        raise WorkerConfigurationError(f"bad {what}", count, f"use a whole number, 0 to {most}")


def check_argv(argv: Sequence[str]) -> Sequence[str]:
    """Returns a program with its arguments if they are valid for `exec`: strings without NUL."""
    if not argv or not all(isinstance(part, str) and "\0" not in part for part in argv):
        raise WorkerConfigurationError("bad command", list(argv), "pass a non-empty list of strings without NUL")
    return argv


def check_module(name: str) -> str:
    """Returns `name` if it is the dotted name of a module, not an option or a path."""
    if not all(part.isidentifier() for part in name.split(".")):
        expected = "a string is a dotted module; pass a program with its arguments as a list"
        raise WorkerConfigurationError("bad command", name, expected)
    return name


def check_env(key: str, value: str) -> None:
    """Raises WorkerConfigurationError unless the variable can be passed to a worker."""
    if not isinstance(key, str) or not key or "=" in key or "\0" in key:
        raise WorkerConfigurationError("bad environment variable name", key, "use a string without '=' and NUL")
    if not isinstance(value, str) or "\0" in value:
        raise WorkerConfigurationError(f"bad value of environment variable {key}", type(value).__name__, "use a str")
    if key.startswith("ROLECALL_"):
        expected = "names that begin with ROLECALL_ belong to the runtime"
        raise WorkerConfigurationError("reserved environment variable", key, expected)


@dataclass(frozen=True)
class SchedulingStrategy:
    """Where the workers of a job run.

    `separation`: in slots of their own. `colocation`: in the slots of the role `target`, either as further processes
    (`fork=True`) or as further engines in the target's own worker processes (`fork=False`).
    """

    type: StrategyType = "separation"
    target: str | None = None
    fork: bool = True

    def __post_init__(self) -> None:
        check_one_of("scheduling strategy", self.type, StrategyType)
        if self.type == "colocation" and not self.target:
            raise WorkerConfigurationError("colocation without a target", None, "name the target role")


@dataclass(frozen=True)
class Job:
    """A role to start.

    Attributes:
        tasks: One spec for all replicas, or one per replica.
        process_group: Set RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT, with worker 0's
            second port, as `torch.distributed` reads them. Libraries that find them wait for the other workers.
    """

    role: str
    replicas: int = 1
    tasks: Sequence[SchedulingSpec] = field(default_factory=lambda: [SchedulingSpec()])
    scheduling_strategy: SchedulingStrategy = field(default_factory=SchedulingStrategy)
    process_group: bool = False

    def __post_init__(self) -> None:
        check_name("role", self.role)
        if isinstance(self.replicas, bool) or not isinstance(self.replicas, int) or self.replicas < 1:
            raise WorkerConfigurationError(
                f"bad number of replicas of role {self.role!r}", self.replicas, "use 1 or more"
            )
        if len(self.tasks) not in (1, self.replicas):
            expected = f"give one spec for all or one for each of the {self.replicas} replicas"
            raise WorkerConfigurationError(f"wrong number of specs for role {self.role!r}", len(self.tasks), expected)
        if self.process_group and self.tasks[0].port_count < 2:
            what = f"no port for the process group of role {self.role!r} among those of its worker 0"
            raise WorkerConfigurationError(what, self.tasks[0].port_count, "use port_count=2 or more")

    def specs(self) -> list[SchedulingSpec]:
        """One spec per replica, in order."""
        return list(self.tasks) if len(self.tasks) == self.replicas else [self.tasks[0]] * self.replicas


def worker_id(role: str, index: int) -> str:
    """The id of a worker: `actor/3`."""
    return f"{role}/{index}"


def role_and_index(worker_id: str) -> tuple[str, int]:
    """The role of a worker and its number in it, from its id."""
    role, _, index = worker_id.rpartition("/")
    return role, int(index)
