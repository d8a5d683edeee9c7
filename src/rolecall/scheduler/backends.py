"""Schedulers by name: a `Scheduler` with the placement of a backend."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from inspect import Parameter, signature
from typing import Any, Literal, Unpack, overload

from rolecall.errors import WorkerConfigurationError
from rolecall.placement.base import Placement
from rolecall.placement.local import LocalPlacement
from rolecall.placement.ray.placement import RayPlacement
from rolecall.placement.registry import PLACEMENTS
from rolecall.placement.slurm.placement import SlurmPlacement
from rolecall.scheduler.keywords import LocalKeywords, RayKeywords, SchedulerKeywords, SlurmKeywords
from rolecall.scheduler.scheduler import Scheduler


class PlacedScheduler(Scheduler):
    """A scheduler that makes its own placement, of the class that it is given."""

    def __init__(self, placement: type[Placement], **options: Any) -> None:
        its = {name: options.pop(name) for name in keywords_of(placement) & options.keys()}
        super().__init__(placement(**its), **options)


class LocalScheduler(PlacedScheduler):
    """Workers on this machine.

    Args:
        options: Those of `LocalPlacement` (`devices`, `oversubscribe`, `ip`) and of `Scheduler`.
    """

    def __init__(self, **options: Unpack[LocalKeywords]) -> None:
        super().__init__(LocalPlacement, **options)


class SlurmScheduler(PlacedScheduler):
    """Workers in jobs of a Slurm cluster.

    Args:
        options: Those of `SlurmPlacement` and `SlurmOptions` (`partition`, `time`, `queue_timeout`, ...) and of
            `Scheduler`.

    Raises:
        SlurmError: Slurm's commands are not there, or slurmctld does not answer.
    """

    def __init__(self, **options: Unpack[SlurmKeywords]) -> None:
        super().__init__(SlurmPlacement, **options)


class RayScheduler(PlacedScheduler):
    """Workers on the nodes of a Ray cluster.

    Args:
        options: Those of `RayPlacement` (`address`, `accelerator`, `queue_timeout`, ...) and of `Scheduler`.
    """

    def __init__(self, **options: Unpack[RayKeywords]) -> None:
        super().__init__(RayPlacement, **options)


SCHEDULERS: dict[str, Callable[..., Scheduler]]
SCHEDULERS = {"local": LocalScheduler, "slurm": SlurmScheduler, "ray": RayScheduler}


@overload
def scheduler(backend: Literal["local"] = "local", **options: Unpack[LocalKeywords]) -> LocalScheduler: ...
@overload
def scheduler(backend: Literal["slurm"], **options: Unpack[SlurmKeywords]) -> SlurmScheduler: ...
@overload
def scheduler(backend: Literal["ray"], **options: Unpack[RayKeywords]) -> RayScheduler: ...
@overload
def scheduler(backend: Placement, **options: Unpack[SchedulerKeywords]) -> Scheduler: ...
@overload
def scheduler(backend: str, **options: Any) -> Scheduler: ...
def scheduler(backend: str | Placement = "local", **options: Any) -> Scheduler:
    """Makes the scheduler of a backend.

    Args:
        backend: `local`, `slurm` or `ray`, or a placement of your own.
        options: `experiment`, `trial`, `fileroot`, `tensors` and the backend's own.

    Raises:
        WorkerConfigurationError: No such backend, or no such option of it.
    """
    if isinstance(backend, Placement):
        _check_known(options, _keyword_only(Scheduler), f"a scheduler with a {type(backend).__name__}")
        return Scheduler(backend, **options)
    if isinstance(backend, type):
        raise WorkerConfigurationError("a class in the place of a placement", backend, "pass an instance of it")
    if backend not in SCHEDULERS:
        raise WorkerConfigurationError("unknown scheduler", backend, f"use one of {', '.join(SCHEDULERS)}")
    _check_known(options, options_of(backend), f"the scheduler {backend!r}")
    return SCHEDULERS[backend](**options)


def _check_known(options: Iterable[str], known: set[str], who: str) -> None:
    for name in options:
        if name not in known:
            raise WorkerConfigurationError(f"{who} has no such option", name, f"it has {', '.join(sorted(known))}")


def options_of(backend: str) -> set[str]:
    """Names of the options of a scheduler: those of its placement and those of every scheduler."""
    return keywords_of(PLACEMENTS[backend]) | _keyword_only(Scheduler)


def keywords_of(placement: type[Placement]) -> set[str]:
    """Names of the options of a placement."""
    return _keyword_only(placement) | set(placement.further_options)


def _keyword_only(maker: type) -> set[str]:
    return {p.name for p in signature(maker).parameters.values() if p.kind is Parameter.KEYWORD_ONLY}
