"""The front door: a scheduler by name."""

from __future__ import annotations

from inspect import Parameter, signature
from typing import Any

from rolecall.errors import WorkerConfigurationError
from rolecall.placement.local import LocalScheduler
from rolecall.placement.ray.ray import RayScheduler
from rolecall.placement.slurm.slurm import SlurmScheduler
from rolecall.scheduler.scheduler import Scheduler

BACKENDS: dict[str, type[Scheduler]] = {"local": LocalScheduler, "slurm": SlurmScheduler, "ray": RayScheduler}


def scheduler(backend: str = "local", **options: Any) -> Scheduler:
    """Makes the scheduler of a backend.

    Args:
        backend: `local`, `slurm` or `ray`.
        options: `experiment`, `trial`, `fileroot`, `tensors` and the backend's own.

    Raises:
        WorkerConfigurationError: No such backend, or no such option of it.
    """
    if backend not in BACKENDS:
        raise WorkerConfigurationError("unknown scheduler", backend, f"use one of {', '.join(BACKENDS)}")
    known = options_of(BACKENDS[backend])
    for name in options:
        if name not in known:
            what = f"the scheduler {backend!r} has no such option"
            raise WorkerConfigurationError(what, name, f"it has {', '.join(sorted(known))}")
    return BACKENDS[backend](**options)


def options_of(backend: type[Scheduler]) -> set[str]:
    """Names of the options of a scheduler: the keywords of its class and of those above."""
    makers = [vars(each)["__init__"] for each in backend.__mro__ if "__init__" in vars(each) and each is not object]
    named = [parameter for maker in makers for parameter in signature(maker).parameters.values()]
    return {p.name for p in named if p.kind is Parameter.KEYWORD_ONLY} | set(backend.further_options)
