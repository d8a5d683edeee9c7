"""The front door: a scheduler by name."""

from __future__ import annotations

from typing import Any

from rolecall.errors import WorkerConfigurationError
from rolecall.schedulers.base import Scheduler
from rolecall.schedulers.local import LocalScheduler
from rolecall.schedulers.slurm import SlurmScheduler

BACKENDS: dict[str, type[Scheduler]] = {"local": LocalScheduler, "slurm": SlurmScheduler}


def scheduler(backend: str = "local", **options: Any) -> Scheduler:
    """Makes the scheduler of a backend.

    Args:
        backend: `local` or `slurm`.
        options: `experiment`, `trial`, `fileroot`, `tensors` and the backend's own.

    Raises:
        WorkerConfigurationError: No such backend.
    """
    if backend not in BACKENDS:
        raise WorkerConfigurationError("unknown scheduler", backend, f"use one of {', '.join(BACKENDS)}")
    return BACKENDS[backend](**options)
