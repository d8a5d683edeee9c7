"""The demo's four roles, started and with their engines in place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import rolecall
from rolecall.demo.phases import Phases
from rolecall.demo.recipe import Recipe

ENGINES = "rolecall.demo.engines"


@dataclass(frozen=True)
class Team:
    """The roles; the scheduler owns their workers.

    Attributes:
        actor: Trains; its workers average their gradients.
        ref: Forked from `actor`: the untrained model.
        rollout: Samples and scores; keeps the trajectories.
        judge: Role `eval-rollout`, forked from `rollout`: answers the evaluation set.
    """

    actor: rolecall.Role
    ref: rolecall.Role
    rollout: rolecall.Role
    judge: rolecall.Role

    @classmethod
    def start(cls, scheduler: rolecall.Scheduler, recipe: Recipe, actors: int, rollouts: int, phases: Phases) -> Self:
        """Starts the roles in turn, counting each one's seconds, and joins the actors to a process group."""
        with phases("actor"):
            actor = scheduler.start("actor", actors, cpu=1, mem=2)
            actor.create_engine(f"{ENGINES}.Actor", recipe)
        with phases("ref"):
            ref = actor.fork("ref")
            ref.create_engine(f"{ENGINES}.Reference", recipe)
        with phases("rollout"):
            rollout = scheduler.start("rollout", rollouts, cpu=1, mem=2)
            rollout.create_engine(f"{ENGINES}.Rollout", recipe)
        with phases("eval-rollout"):
            judge = rollout.fork("eval-rollout")
            judge.create_engine(f"{ENGINES}.Rollout", recipe)
        with phases("process group"):
            actor.call("connect")
        return cls(actor, ref, rollout, judge)
