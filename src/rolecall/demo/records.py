"""Records of a demo's progress: the loop makes them, the display shows them, the report writes them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Started:
    """Every role is ready. `roles` holds the seconds that each start took, engines included."""

    seconds: float
    roles: dict[str, float]


@dataclass(frozen=True)
class Step:
    """One step of training.

    Attributes:
        step: From 1.
        seconds: Since the demo began.
        reward: Mean over the step's answers, sampled at temperature 1 before the update.
        exact: Share of these answers that are entirely correct.
        tokens: Tokens sampled.
        tokens_per_second: Over the whole step, training included.
        phases: Seconds by phase: sample, reference, train, weights.
    """

    step: int
    seconds: float
    reward: float
    exact: float
    loss: float
    kl: float
    clipped: float
    grad_norm: float
    tokens: int
    tokens_per_second: float
    phases: dict[str, float]


@dataclass(frozen=True)
class Evaluation:
    """Greedy answers to the evaluation set with the weights after `step`; `sample` is one of them."""

    step: int
    seconds: float
    reward: float
    exact: float
    sample: str


@dataclass(frozen=True)
class Summary:
    """The results of a run.

    Attributes:
        steps: Steps done.
        seconds: From the start until every process had ended.
        first: Evaluation reward of the untrained model.
        reward: The last evaluation reward.
        exact: Share of entirely correct answers in the last evaluation.
        tokens_per_second: Mean over the training.
        directory: Path of the run directory.
        metrics: Path of all records as JSON lines.
        plot: Path of the reward curve (PNG).
    """

    seed: int
    steps: int
    seconds: float
    first: float
    reward: float
    exact: float
    tokens_per_second: float
    directory: str
    metrics: str
    plot: str


Record = Started | Step | Evaluation | Summary


def as_line(record: Record) -> dict[str, Any]:
    """The record as plain values; `event` names its kind."""
    return {"event": type(record).__name__.lower(), **asdict(record)}
