"""How the demo runs, as a value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from os import PathLike
from typing import Any

from rolecall.demo.recipe import Recipe
from rolecall.errors import WorkerConfigurationError


@dataclass(frozen=True)
class DemoOptions:
    """How the demo runs.

    Attributes:
        recipe: What is trained and how.
        steps: Training ends after this many steps ...
        seconds: ... or with the step in which this many seconds have passed since all workers were there.
        eval_every: Steps between evaluations; there is one before the first and one after the last step in any case.
        actors: Workers of `actor` and of `ref`.
        rollouts: Workers of `rollout` and of `eval-rollout`; each answers as many prompts as the others.
        scheduler: Where it runs, as `rolecall.scheduler` names it; so are fileroot, experiment and trial.
        scheduler_options: The backend's own options, for instance a partition.
    """

    recipe: Recipe = field(default_factory=Recipe)
    steps: int = 500
    seconds: float = 120.0
    eval_every: int = 20
    actors: int = 2
    rollouts: int = 2
    scheduler: str = "local"
    fileroot: str | PathLike[str] | None = None
    experiment: str = "demo"
    trial: str | None = None
    scheduler_options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise WorkerConfigurationError("bad number of steps", self.steps, "use 1 or more")
        for what, count in (("prompts", self.recipe.prompts), ("evaluation prompts", self.recipe.eval_prompts)):
            if count % self.rollouts:
                expected = f"use a multiple of the {self.rollouts} rollout workers"
                raise WorkerConfigurationError(f"bad number of {what}", count, expected)
