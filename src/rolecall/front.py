"""The front door: a scheduler by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rolecall.errors import WorkerConfigurationError
from rolecall.schedulers.base import Scheduler
from rolecall.schedulers.local import LocalScheduler
from rolecall.schedulers.ray import RayScheduler
from rolecall.schedulers.slurm import SlurmScheduler

BACKENDS: dict[str, Callable[..., Scheduler]] = {"local": LocalScheduler, "slurm": SlurmScheduler, "ray": RayScheduler}


def scheduler(backend: str = "local", **options: Any) -> Scheduler:
    """Makes the scheduler of a backend.

    Args:
        backend: `local`, `slurm` or `ray`.
        options: `experiment`, `trial`, `fileroot`, `tensors` and the backend's own.

    Raises:
        WorkerConfigurationError: No such backend.
    """
    if backend not in BACKENDS:
        raise WorkerConfigurationError("unknown scheduler", backend, f"use one of {', '.join(BACKENDS)}")
    return BACKENDS[backend](**options)
