"""What will be started, as a value. Pure: the same job and the same free devices give the same plan."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any

from rolecall.errors import GPUAllocationError
from rolecall.protocol.environment import inheritable
from rolecall.protocol.guard import Ready
from rolecall.protocol.programs import program
from rolecall.types import Job, SchedulingSpec, readiness, worker_id

log = logging.getLogger("rolecall")


@dataclass(frozen=True)
class Slot:
    """One worker to be started: its share of a host, its environment, and its program if it hosts no engines.

    Attributes:
        gpu: How many devices it gets.
        devices: Their names. A cluster's plan does not know them: its guards say what they were given.
        process_group: It gets the variables that `torch.distributed` reads.
    """

    worker_id: str
    cores: int
    gpu: int
    devices: tuple[str, ...]
    port_count: int
    env: Mapping[str, str]
    argv: tuple[str, ...] | None = None
    ready: Ready | None = None
    target: str | None = None
    process_group: bool = False


@dataclass(frozen=True)
class Plan:
    """A role as it will be started.

    Attributes:
        target: The role in whose slots it lives.
        guards: For each slot the number of the guard that will own it; empty where there is only one.
        script: The batch script, on backends that submit one.
    """

    role: str
    slots: tuple[Slot, ...]
    target: str | None = None
    guards: tuple[int, ...] = ()
    script: str = ""

    def __str__(self) -> str:
        head = f"role {self.role}: {len(self.slots)} worker(s)" + (
            f", forked from {self.target}" if self.target else ""
        )
        rows = [
            f"  {s.worker_id}: {s.cores} core(s), {_devices(s)}, {s.port_count} port(s)"
            + (f", guard {guard}" if guard is not None else "")
            + (f", runs {' '.join(s.argv)}" if s.argv else "")
            for s, guard in zip_longest(self.slots, self.guards)
        ]
        return "\n".join([head, *rows, *([self.script] if self.script else [])])


def _devices(slot: Slot) -> str:
    if slot.devices or not slot.gpu:
        return f"devices {','.join(slot.devices) or 'none'}"
    return f"{slot.gpu} device(s)"


def separate_slots(job: Job, host_cores: int) -> tuple[Slot, ...]:
    """Slots of a role that gets its own, their devices not yet chosen; cores never exceed what the host has."""
    return tuple(
        Slot(
            worker_id=worker_id(job.role, i),
            cores=max(1, min(spec.cpu, host_cores)),
            gpu=spec.gpu,
            devices=(),
            port_count=spec.port_count,
            process_group=job.process_group,
            **_program(spec),
        )
        for i, spec in enumerate(job.specs())
    )


def with_devices(slots: Sequence[Slot], devices: Mapping[str, Sequence[str]]) -> tuple[Slot, ...]:
    """The slots with the devices of each worker, by its id."""
    return tuple(replace(slot, devices=tuple(devices.get(slot.worker_id, ()))) for slot in slots)


def dealt(plan: Plan, given: Sequence[Sequence[str]]) -> Plan:
    """The plan with devices: each guard's, in the order it named them, go to its slots in turn.

    Args:
        given: What each guard of the plan was given.

    Raises:
        GPUAllocationError: A guard was given fewer than its slots need.
    """
    left = [list(devices) for devices in given]
    chosen: dict[str, list[str]] = {}
    for slot, guard in zip(plan.slots, plan.guards, strict=True):
        if slot.gpu > len(left[guard]):
            raise GPUAllocationError(sum(s.gpu for s in plan.slots), list(given[guard]), chosen)
        chosen[slot.worker_id], left[guard] = left[guard][: slot.gpu], left[guard][slot.gpu :]
    return replace(plan, slots=with_devices(plan.slots, chosen))


def forked_slots(job: Job, targets: Sequence[Slot]) -> tuple[Slot, ...]:
    """Slots of a role that lives in the slots of another: same cores and devices, own id, ports and variables."""
    return tuple(
        replace(
            target,
            worker_id=worker_id(job.role, i),
            port_count=max(spec.port_count, target.port_count),
            target=target.worker_id,
            process_group=job.process_group,
            **_program(spec),
        )
        for i, (target, spec) in enumerate(zip(targets, job.specs(), strict=True))
    )


def warn_of_unused(job: Job, names: Sequence[str], where: str) -> None:
    """Logs which of these fields a job's specs set although they have no effect there."""
    unused = [name for name in names if any(getattr(spec, name) for spec in job.specs())]
    if unused:
        log.warning("role %s: %s have no effect %s", job.role, ", ".join(unused), where)


def _program(spec: SchedulingSpec) -> dict[str, Any]:
    """What runs in a slot, when it is ready, and its variables. No program hosts engines."""
    how = readiness(spec.ready)
    ready = Ready(**how) if how is not None else None
    if spec.cmd is None:
        return {"env": dict(spec.env_vars), "argv": None, "ready": ready}
    argv, ready = program(spec.cmd, ready)
    return {"env": dict(spec.env_vars), "argv": tuple(argv), "ready": ready}


# What describes the controller's own host, login session or share of a cluster, and would be wrong on another host.
_HOSTS_OWN = re.compile(
    r"PATH|HOME|USER|LOGNAME|SHELL|SHLVL|PWD|OLDPWD|HOSTNAME|HOST|TMPDIR|TMP|TEMP|TERM|DISPLAY|MAIL|_|PS1|LD_\w+"
    r"|PYTHONHOME|VIRTUAL_ENV|CONDA_\w+|(CUDA|ASCEND_RT)_VISIBLE_DEVICES|(SLURM|SBATCH|SRUN|RAY|SSH|XDG|DBUS)_\w+"
)


def portable_environment(controller: Mapping[str, str], python_path: Sequence[str]) -> dict[str, str]:
    """The part of the controller's environment that workers on other hosts get over their host's own."""
    env = base_environment(controller, python_path)
    return {k: v for k, v in env.items() if not _HOSTS_OWN.fullmatch(k)}


def base_environment(controller: Mapping[str, str], python_path: Sequence[str]) -> dict[str, str]:
    """The controller's environment as every worker gets it, without what belongs to another launcher."""
    env = inheritable(controller)
    env.setdefault("TOKENIZERS_PARALLELISM", "false")
    env.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")
    env["PYTHONPATH"] = ":".join(python_path)
    return env
