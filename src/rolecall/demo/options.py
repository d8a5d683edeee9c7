"""The demo's settings: what is trained (`Recipe`), how it runs (`DemoOptions`), and which packages it needs.

This module imports nothing heavy: the controller reads the settings without torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from os import PathLike
from typing import Any

from rolecall.errors import WorkerConfigurationError

NEEDS = ("torch", "numpy", "transformers", "matplotlib")


@dataclass(frozen=True)
class Recipe:
    """Model and training hyperparameters.

    Attributes:
        seed: Of the initial weights, the prompts and the sampling. Evaluation prompts are the same for all seeds.
        hidden: Width of the model.
        layers: Number of its layers.
        heads: Number of its attention heads.
        prompts: Prompts per step, over all rollout workers.
        group: Answers sampled per prompt; advantages are relative to the group.
        epochs: Passes of the optimizer over a step's batch.
        lr: Learning rate of AdamW.
        clip_low: The probability ratio is clipped below at 1 - clip_low.
        clip_high: The probability ratio is clipped above at 1 + clip_high.
        kl_weight: Weight of the KL divergence from the reference model in the loss. The reference is untrained, nearly
            uniform over the tokens, so this keeps the policy exploring: with 0.001 the reward stays at 0.7.
        max_grad_norm: Gradients are clipped to this norm.
        eval_prompts: Size of the evaluation set.
    """

    seed: int = 0
    hidden: int = 64
    layers: int = 2
    heads: int = 4
    prompts: int = 16
    group: int = 16
    epochs: int = 2
    lr: float = 1e-3
    clip_low: float = 0.2
    clip_high: float = 0.28
    kl_weight: float = 0.05
    max_grad_norm: float = 1.0
    eval_prompts: int = 256


@dataclass(frozen=True)
class DemoOptions:
    """The settings of one run of the demo.

    Attributes:
        recipe: Model and training hyperparameters.
        steps: Training ends after this many steps ...
        seconds: ... or after the step in which this many seconds have passed since all workers were ready.
        eval_every: Steps between evaluations; there is one before the first and one after the last step in any case.
        actors: Workers of `actor` and of `ref`.
        rollouts: Workers of `rollout` and of `eval-rollout`; each answers as many prompts as the others.
        scheduler: Name of the backend; it, fileroot, experiment and trial are passed to `rolecall.scheduler`.
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


def check_needs(modules: tuple[str, ...] = NEEDS) -> None:
    """Checks that the packages the demo needs are installed, before a worker would fail for want of one.

    Raises:
        WorkerConfigurationError: A package is missing; the message says how to install it.
    """
    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        what = f"the demo needs {', '.join(missing)}"
        raise WorkerConfigurationError(what, None, "pip install 'rolecall[rl]', or `make demo` in a checkout")
