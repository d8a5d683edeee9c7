"""Ray, for the suites."""

from __future__ import annotations

from typing import Any

from rolecall import RayScheduler, Scheduler
from rolecall.errors import WorkerCreationError
from tests.support.backend import ON_A_CLUSTER, Backend


def make(**options: Any) -> Scheduler:
    return RayScheduler(**{"queue_timeout": 5.0, **options})


BACKEND = Backend("ray", make, cluster="ray_cluster", full=(WorkerCreationError, r"no allocation"), **ON_A_CLUSTER)
