"""Slurm, for the suites."""

from __future__ import annotations

from typing import Any

from rolecall import Scheduler, SlurmScheduler
from rolecall.errors import WorkerCreationError
from tests.support.backend import ON_A_CLUSTER, Backend


def make(**options: Any) -> Scheduler:
    return SlurmScheduler(**{"queue_timeout": 5.0, **options})


BACKEND = Backend(
    "slurm",
    make,
    cluster="slurm_cluster",
    full=(WorkerCreationError, r"no allocation within 5 s; job \d+: Resources"),
    **ON_A_CLUSTER,
)
