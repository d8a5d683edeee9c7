"""Schedulers by name: a `Scheduler` with the placement of a backend."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Set
from inspect import Parameter, Signature, signature
from typing import Any, Literal, TypeVar, Unpack, overload

from rolecall.errors import WorkerConfigurationError
from rolecall.placement.base import Placement
from rolecall.placement.local import LocalPlacement
from rolecall.placement.ray.placement import RayPlacement
from rolecall.placement.registry import PLACEMENTS
from rolecall.placement.slurm.options import SlurmOptions
from rolecall.placement.slurm.placement import SlurmPlacement
from rolecall.scheduler.keywords import LocalKeywords, RayKeywords, RunOptions, SchedulerKeywords, SlurmKeywords
from rolecall.scheduler.scheduler import Scheduler

S = TypeVar("S", bound=Scheduler)
_ARGS = re.compile(r"^Args:\n((?:    .*\n?)*)", re.MULTILINE)
_OURS = re.compile(r"^    (placement|options): .*\n?", re.MULTILINE)


class PlacedScheduler(Scheduler):
    """A scheduler that makes its own placement, of the class that it is given."""

    def __init__(self, placement: type[Placement], **options: Any) -> None:
        its = {name: options.pop(name) for name in keywords_of(placement) & options.keys()}
        super().__init__(placement(**its), **options)


def _options(maker: type) -> dict[str, Parameter]:
    """What a constructor takes by keyword alone."""
    taken = signature(RunOptions if maker is Scheduler else maker).parameters
    return {name: each for name, each in taken.items() if each.kind is Parameter.KEYWORD_ONLY}


def _with_options_of(*makers: type) -> Callable[[type[S]], type[S]]:
    """Puts the options that go to these into a scheduler's signature and docstring, where `help` finds them."""

    def change(scheduler: type[S]) -> type[S]:
        options = {name: each for maker in makers for name, each in _options(maker).items()}
        scheduler.__signature__ = Signature([*options.values()])  # type: ignore[attr-defined]
        told = "\n".join(_ARGS.findall(inspect.getdoc(maker) or "")[0].rstrip() for maker in makers)
        what, *raises = (inspect.getdoc(scheduler) or "").split("\n\n")
        scheduler.__doc__ = "\n\n".join([what, f"Args:\n{_OURS.sub('', told)}", *raises])
        return scheduler

    return change


@_with_options_of(LocalPlacement, Scheduler)
class LocalScheduler(PlacedScheduler):
    """Workers on this machine."""

    def __init__(self, **options: Unpack[LocalKeywords]) -> None:
        super().__init__(LocalPlacement, **options)


@_with_options_of(SlurmPlacement, SlurmOptions, Scheduler)
class SlurmScheduler(PlacedScheduler):
    """Workers in jobs of a Slurm cluster.

    Raises:
        SlurmError: Slurm's commands are not there, or slurmctld does not answer.
    """

    def __init__(self, **options: Unpack[SlurmKeywords]) -> None:
        super().__init__(SlurmPlacement, **options)


@_with_options_of(RayPlacement, Scheduler)
class RayScheduler(PlacedScheduler):
    """Workers on the nodes of a Ray cluster."""

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
def scheduler(backend: str, **options: Unpack[SchedulerKeywords]) -> Scheduler: ...
def scheduler(backend: str | Placement = "local", **options: Any) -> Scheduler:
    """Makes the scheduler of a backend.

    Args:
        backend: `local`, `slurm` or `ray`, or a placement of your own.
        options: `experiment`, `trial`, `fileroot`, `tensors` and the backend's own. Where the name is known at run time
            only, a type checker takes those of every backend, or `**options` of any type.

    Raises:
        WorkerConfigurationError: No such backend, or no such option of it.
    """
    if isinstance(backend, Placement):
        _check_known(options, _options(Scheduler).keys(), f"a scheduler with a {type(backend).__name__}")
        return Scheduler(backend, **options)
    if isinstance(backend, type):
        raise WorkerConfigurationError("a class in the place of a placement", backend, "pass an instance of it")
    if backend not in SCHEDULERS:
        raise WorkerConfigurationError("unknown scheduler", backend, f"use one of {', '.join(SCHEDULERS)}")
    _check_known(options, options_of(backend), f"the scheduler {backend!r}")
    return SCHEDULERS[backend](**options)


def _check_known(options: Iterable[str], known: Set[str], who: str) -> None:
    for name in options:
        if name not in known:
            raise WorkerConfigurationError(f"{who} has no such option", name, f"it has {', '.join(sorted(known))}")


def options_of(backend: str) -> set[str]:
    """Names of the options of a scheduler: those of its placement and those of every scheduler."""
    return keywords_of(PLACEMENTS[backend]) | _options(Scheduler).keys()


def keywords_of(placement: type[Placement]) -> set[str]:
    """Names of the options of a placement."""
    return _options(placement).keys() | set(placement.further_options)
