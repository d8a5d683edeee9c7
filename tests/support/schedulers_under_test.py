"""The backends that the suites run against, and what may differ between them: as data, never as a branch in a test."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from _pytest.mark.structures import ParameterSet

from rolecall import LocalScheduler, RayScheduler, Scheduler, SlurmScheduler
from rolecall.errors import GPUAllocationError, RolecallError, WorkerCreationError
from rolecall.testing import InProcessScheduler

DEVICES = 8  # what each backend has for a test to give out, so that one job fits all of them


@dataclass(frozen=True)
class Backend:
    """A backend as the suites see it.

    Attributes:
        make: Makes a scheduler with its devices; takes the options of `Scheduler`.
        cluster: The fixture of the cluster that it needs, which is its group of tests too; its own group when None.
        full: How asking for a device of which none is free ends, and what the error says.
        guards_of_roles: Each role has guards of its own, so a lost one concerns no other role.
        own_processes: Each worker is a process, with an environment of its own.
        told_s: A caller learns of a worker's death within so long.
        guard_told_s: And of a guard's, since a cluster's manager is asked why.
        gone_s: What a dead worker or guard owned is gone within so long.
        controller_gone_s: What a dead controller owned is; longer, since nobody is left to ask for it.
        ctrl_c_s: A controller that was interrupted has ended everything within so long.
    """

    name: str
    make: Callable[..., Scheduler]
    cluster: str | None = None
    full: tuple[type[RolecallError], str] = (GPUAllocationError, r"actor/0 holds 0, 1; actor/1 holds 2, 3")
    guards_of_roles: bool = False
    own_processes: bool = True
    told_s: float = 1.0
    guard_told_s: float = 1.0
    gone_s: float = 2.0
    controller_gone_s: float = 5.0
    ctrl_c_s: float = 3.0

    def __str__(self) -> str:
        return self.name


def _local(**options: Any) -> Scheduler:
    return LocalScheduler(**{"devices": range(DEVICES), **options})


def _in_process(**options: Any) -> Scheduler:
    return InProcessScheduler(**{"devices": range(DEVICES), **options})


def _slurm(**options: Any) -> Scheduler:
    return SlurmScheduler(**{"queue_timeout": 5.0, **options})


def _ray(**options: Any) -> Scheduler:
    return RayScheduler(**{"queue_timeout": 5.0, **options})


ON_A_CLUSTER: dict[str, Any] = {
    "guards_of_roles": True,
    "told_s": 7.0,  # a manager that may have sent SIGTERM is asked for 5 s
    "guard_told_s": 15.0,
    "gone_s": 5.0,
    "controller_gone_s": 15.0,
    "ctrl_c_s": 15.0,
}
BACKENDS = {
    backend.name: backend
    for backend in (
        Backend("local", _local),
        Backend("in-process", _in_process, own_processes=False),
        Backend(
            "slurm",
            _slurm,
            cluster="slurm_cluster",
            full=(WorkerCreationError, r"no allocation within 5 s; job \d+: Resources"),
            **ON_A_CLUSTER,
        ),
        Backend("ray", _ray, cluster="ray_cluster", full=(WorkerCreationError, r"no allocation"), **ON_A_CLUSTER),
    )
}
CLUSTERS = {backend.cluster for backend in BACKENDS.values() if backend.cluster is not None}
# Whose workers are processes of their own.
OF_PROCESSES = [name for name, backend in BACKENDS.items() if backend.own_processes]


def each(names: list[str]) -> list[ParameterSet]:
    """Parameters for a fixture `backend`."""
    return [pytest.param(name, marks=_needs(BACKENDS[name].cluster)) for name in names]


def _needs(cluster: str | None) -> list[pytest.MarkDecorator]:
    return [pytest.mark.cluster(cluster)] if cluster is not None else []


def make_scheduler(backend: str, *, fileroot: str | Path, **options: Any) -> Scheduler:
    """A scheduler for a test. Nothing is preloaded, since few tests need it and all would wait for it."""
    defaults = {"experiment": "suite", "trial": "t", "preload": []}
    return BACKENDS[backend].make(fileroot=fileroot, **{**defaults, **options})
