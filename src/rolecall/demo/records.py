"""What a running demo has to say, as values: the loop makes them, the display shows them, the report writes them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Started:
    """Every role is up. `roles` gives for each the seconds that it took, engines included."""

    seconds: float
    roles: dict[str, float]


@dataclass(frozen=True)
class Step:
    """One step of training.

    Attributes:
        step: From 1.
        seconds: Since the demo began.
        reward: Mean over the step's answers, sampled at temperature 1 before the update.
        exact: Share of them without a mistake.
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
    """How it ended.

    Attributes:
        steps: Steps done.
        seconds: From the beginning until every process was gone.
        first: Evaluation reward of the untrained model.
        reward: The last evaluation reward.
        exact: The last share of answers without a mistake.
        tokens_per_second: Mean over the training.
        directory: The run directory.
        metrics: Every number, JSON lines.
        plot: The reward curve.
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
    """The record as plain values; `event` says which kind it is."""
    return {"event": type(record).__name__.lower(), **asdict(record)}
