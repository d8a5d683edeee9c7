"""The keywords of schedulers, for editors and type checkers, and their values. A test compares the two."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypedDict

from rolecall.errors import WorkerConfigurationError
from rolecall.placement.ray.groups import Accelerator
from rolecall.placement.slurm.options import GpuRequest
from rolecall.protocol.guard_config import GuardConfig
from rolecall.scheduler.calls import setup_path
from rolecall.types import (
    ContainerType,
    RayPlacementStrategy,
    SchedulingSpec,
    TaskType,
    TensorBackend,
    TensorPolicy,
    WorkerSetup,
    check_one_of,
    check_seconds,
)


class SchedulerKeywords(TypedDict, total=False):
    """Those of `Scheduler`."""

    experiment: str
    trial: str | None
    fileroot: str | os.PathLike[str] | None
    tensors: TensorPolicy
    tensor_backend: TensorBackend
    preload: Sequence[str]
    start_timeout: float
    grace_s: float
    destroy_s: float
    lease_s: float
    stall_s: float
    silence_s: float
    seed: int | None
    worker_setup: WorkerSetup | None
    one_engine_thread: bool
    echo_logs: bool
    quiet: bool


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Their values, checked when made."""

    experiment: str = "default"
    trial: str | None = None
    fileroot: str | os.PathLike[str] | None = None
    tensors: TensorPolicy = "local"
    tensor_backend: TensorBackend = "shm"
    preload: Sequence[str] = ("torch",)
    start_timeout: float = 120.0
    grace_s: float = 5.0
    destroy_s: float = 10.0
    lease_s: float = 30.0
    stall_s: float = 120.0
    silence_s: float = 8.0
    seed: int | None = None
    worker_setup: WorkerSetup | None = None
    one_engine_thread: bool = False
    echo_logs: bool = False
    quiet: bool = False

    def __post_init__(self) -> None:
        check_one_of("tensor policy", self.tensors, TensorPolicy)
        check_one_of("tensor backend", self.tensor_backend, TensorBackend)
        for name in ("start_timeout", "grace_s", "destroy_s"):
            check_seconds(name, getattr(self, name))
        for name in ("lease_s", "stall_s", "silence_s"):
            check_seconds(name, getattr(self, name), 0.1)
        if self.seed is not None and type(self.seed) is not int:
            raise WorkerConfigurationError("bad seed", self.seed, "use a whole number")
        setup_path(self.worker_setup)

    def of_guards(self) -> dict[str, Any]:
        """Those that guards have too, by their names there."""
        own = {name: value for name, value in asdict(self).items() if name in GuardConfig.__struct_fields__}
        return own | {"preload": list(self.preload), "setup": setup_path(self.worker_setup)}


class SpecKeywords(TypedDict, total=False):
    """The fields of `SchedulingSpec`, as keywords of `Scheduler.start`."""

    cpu: int
    gpu: int
    mem: int
    port_count: int
    image: str | None
    task_type: TaskType
    env_vars: dict[str, str]
    cmd: str | Sequence[str] | None
    srun_additional_args: str | None
    additional_bash_cmds: Sequence[str] | None
    container_type: ContainerType
    mount: str | None
    nodelist: str | None
    exclude: str | None
    ray_placement_strategy: RayPlacementStrategy
    ready: str | dict[str, Any] | None


class StartKeywords(SpecKeywords, total=False):
    """Those of `Scheduler.start`."""

    target: str | None
    fork: bool
    tasks: Sequence[SchedulingSpec] | None
    process_group: bool


class HostKeywords(SchedulerKeywords, total=False):
    """Those of schedulers on one host."""

    devices: Sequence[str | int] | None
    oversubscribe: bool


class LocalKeywords(HostKeywords, total=False):
    """Those of `LocalScheduler`."""

    ip: str


class ClusterKeywords(SchedulerKeywords, total=False):
    """Those of schedulers on a cluster."""

    ip: str | None
    queue_timeout: float | None
    n_gpus_per_node: int | None


class SlurmKeywords(ClusterKeywords, total=False):
    """Those of `SlurmScheduler`."""

    partition: str | None
    account: str | None
    qos: str | None
    time: str | int | None
    nodelist: str | None
    exclude: str | None
    constraint: str | None
    reservation: str | None
    image: str | None
    container_type: ContainerType
    mount: str | None
    additional_bash_cmds: Sequence[str] | None
    srun_additional_args: str | Sequence[str] | None
    cpus_per_node: int | None
    mem_per_node: int | None
    gres: str
    gpu_request: GpuRequest
    signal_s: int
    python: str | None


class RayKeywords(ClusterKeywords, total=False):
    """Those of `RayScheduler`."""

    address: str | None
    namespace: str
    accelerator: Accelerator
    reserve_memory: bool
    init: Mapping[str, Any] | None
