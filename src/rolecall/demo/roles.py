"""Starts the demo's four roles with their engines, and measures how long each phase takes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Self

import rolecall
from rolecall.demo.options import Recipe

ENGINES = "rolecall.demo.engines"
QWEN2 = "transformers.models.qwen2.modeling_qwen2"  # what the engines import when they build a model


class Phases:
    """A stopwatch that sums up seconds by phase."""

    def __init__(self) -> None:
        self._spent: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Counts the block's seconds under `name`."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self._spent[name] = self._spent.get(name, 0.0) + time.perf_counter() - begin

    def take(self) -> dict[str, float]:
        """Seconds by phase since the last `take`, in the order in which the phases first ran."""
        spent, self._spent = self._spent, {}
        return spent


@dataclass(frozen=True)
class DemoRoles:
    """The four roles; the scheduler owns their workers.

    Attributes:
        actor: Trains the policy; its workers average their gradients.
        ref: Forked from `actor`; holds the untrained reference model.
        rollout: Samples and scores answers; stores the trajectories.
        eval_rollout: The role `eval-rollout`, forked from `rollout`; answers the evaluation set.
    """

    actor: rolecall.Role
    ref: rolecall.Role
    rollout: rolecall.Role
    eval_rollout: rolecall.Role

    @classmethod
    def start(cls, scheduler: rolecall.Scheduler, recipe: Recipe, actors: int, rollouts: int, phases: Phases) -> Self:
        """Starts one role after the other, measures each start, and joins the actors into a process group."""
        with phases("actor"):
            actor = scheduler.start("actor", actors, cpu=1, mem=2, process_group=True)
            actor.create_engine(f"{ENGINES}.Actor", recipe)
        with phases("ref"):
            ref = actor.fork("ref")
            ref.create_engine(f"{ENGINES}.Reference", recipe)
        with phases("rollout"):
            rollout = scheduler.start("rollout", rollouts, cpu=1, mem=2)
            rollout.create_engine(f"{ENGINES}.Rollout", recipe)
        with phases("eval-rollout"):
            eval_rollout = rollout.fork("eval-rollout")
            eval_rollout.create_engine(f"{ENGINES}.Rollout", recipe)
        with phases("process group"):
            actor.call("connect")
        return cls(actor, ref, rollout, eval_rollout)
