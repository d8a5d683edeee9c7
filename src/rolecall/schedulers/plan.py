"""What will be started, as a value. Pure: the same job and the same free devices give the same plan."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rolecall.types import Job, SchedulingSpec, check_argv, check_module, readiness, worker_id

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


@dataclass(frozen=True)
class Slot:
    """One worker to be started: its share of a host, its environment, and its program if it hosts no engines."""

    worker_id: str
    cores: int
    devices: tuple[str, ...]
    port_count: int
    env: Mapping[str, str]
    argv: tuple[str, ...] | None = None
    ready: Mapping[str, Any] | None = None
    target: str | None = None


@dataclass(frozen=True)
class Plan:
    """A role as it will be started. `script` is the batch script on backends that submit one."""

    role: str
    slots: tuple[Slot, ...]
    target: str | None = None
    script: str = ""

    def __str__(self) -> str:
        head = f"role {self.role}: {len(self.slots)} worker(s)" + (
            f", forked from {self.target}" if self.target else ""
        )
        rows = [
            f"  {s.worker_id}: {s.cores} core(s), devices {','.join(s.devices) or 'none'}, {s.port_count} port(s)"
            + (f", runs {' '.join(s.argv)}" if s.argv else "")
            for s in self.slots
        ]
        return "\n".join([head, *rows, *([self.script] if self.script else [])])


def separate_slots(job: Job, devices: Mapping[str, Sequence[str]], host_cores: int) -> tuple[Slot, ...]:
    """Slots of a role that gets its own. `devices` by worker id; cores never exceed what the host has."""
    return tuple(
        Slot(
            worker_id=worker_id(job.role, i),
            cores=max(1, min(spec.cpu, host_cores)),
            devices=tuple(devices.get(worker_id(job.role, i), ())),
            port_count=spec.port_count,
            env=dict(spec.env_vars),
            argv=argv_of(spec.cmd),
            ready=readiness(spec.ready),
        )
        for i, spec in enumerate(job.specs())
    )


def forked_slots(role: str, targets: Sequence[Slot], specs: Sequence[SchedulingSpec]) -> tuple[Slot, ...]:
    """Slots of a role that lives in the slots of another: same cores and devices, own id, ports and variables."""
    return tuple(
        Slot(
            worker_id=worker_id(role, i),
            cores=target.cores,
            devices=target.devices,
            port_count=max(spec.port_count, target.port_count),
            env=dict(spec.env_vars),
            argv=argv_of(spec.cmd),
            ready=readiness(spec.ready),
            target=target.worker_id,
        )
        for i, (target, spec) in enumerate(zip(targets, specs, strict=True))
    )


def argv_of(command: str | Sequence[str] | None) -> tuple[str, ...] | None:
    """A dotted module runs as `python -m module`; a list is a program; None hosts engines."""
    if command is None:
        return None
    if isinstance(command, str):
        return (sys.executable, "-m", check_module(command))
    return tuple(check_argv(command))


def rank_environment(index: int, world: int, master: tuple[str, str] | None) -> dict[str, str]:
    """What `torch.distributed` reads. `LOCAL_RANK` is 0 since each worker sees its own devices from 0."""
    env = {"RANK": str(index), "WORLD_SIZE": str(world), "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    if master is not None:
        env |= {"MASTER_ADDR": master[0], "MASTER_PORT": master[1]}
    return env


def base_environment(controller: Mapping[str, str], python_path: Sequence[str]) -> dict[str, str]:
    """The controller's environment as every worker gets it, without what belongs to another launcher."""
    foreign = ("PMI", "OMPI_", "ROLECALL_")
    env = {k: v for k, v in controller.items() if not k.startswith(foreign)}
    env.setdefault("TOKENIZERS_PARALLELISM", "false")
    env.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")
    env["PYTHONPATH"] = ":".join(python_path)
    return env
