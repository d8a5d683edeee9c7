"""The keywords of schedulers, for editors and type checkers. A test compares them with the constructors."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from rolecall.placement.ray.groups import Accelerator
from rolecall.placement.slurm.options import GpuRequest
from rolecall.types import ContainerType, RayPlacementStrategy, TaskType, TensorBackend, TensorPolicy, WorkerSetup


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
