"""The demo: GRPO on "sort five digits" as a job of four roles, written against the public interface alone.

Trajectories and weights travel from worker to worker; this process sees handles and a few numbers a step. It imports no
torch.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console

import rolecall
from rolecall.demo.display import display_on, summary_text
from rolecall.demo.needs import check_needs
from rolecall.demo.options import DemoOptions
from rolecall.demo.panel import title
from rolecall.demo.phases import Phases
from rolecall.demo.records import Evaluation, Started, Step, Summary
from rolecall.demo.report import Report
from rolecall.demo.team import ENGINES, Team
from rolecall.demo.trajectories import Batch, divided, joined, mean


class Demo:
    """The training over the four roles.

    Args:
        scheduler: Owner of the workers.
        options: How to run.
        begin: When the demo began, by `time.perf_counter`.
    """

    def __init__(self, scheduler: rolecall.Scheduler, options: DemoOptions, begin: float) -> None:
        self.scheduler, self.options, self.recipe, self.begin = scheduler, options, options.recipe, begin
        self.phases = Phases()
        self.team = Team.start(scheduler, self.recipe, options.actors, options.rollouts, self.phases)

    def records(self) -> Iterator[Started | Step | Evaluation]:
        """Runs the training; says what happened as it happens."""
        yield Started(self.elapsed(), self.phases.take())
        yield self.evaluate(0)
        step = 0
        end = self.elapsed() + self.options.seconds  # waiting in a cluster's queue is not training
        while step < self.options.steps and self.elapsed() < end:
            step += 1
            yield self.step(step)
            if step % self.options.eval_every == 0:
                yield self.evaluate(step)
        if step % self.options.eval_every:
            yield self.evaluate(step)

    def step(self, step: int) -> Step:
        """One step: sample, ask the reference, train, hand the new weights on."""
        begin = time.perf_counter()
        with self.scheduler.scope():
            made = self.sample(step)
            shares = divided(joined(made), len(self.team.actor))
            self.refer(shares)
            stats = self.train(shares)
            self.push_weights(step)
        return self.record(step, made, stats, time.perf_counter() - begin)

    def sample(self, step: int) -> list[dict[str, Any]]:
        """Every rollout worker answers its part of the step's prompts. The trajectories stay there."""
        count = len(self.team.rollout)
        first_seed = (self.recipe.seed * 1_000_000 + step) * count
        with self.phases("sample"):
            work = [(first_seed + i, self.recipe.prompts // count) for i in range(count)]
            return self.team.rollout.map("generate", work)

    def refer(self, shares: list[Batch]) -> None:
        """Adds to every share what the reference model thinks of its tokens."""
        with self.phases("reference"):
            found = self.team.ref.map("logprobs", [(share["tokens"],) for share in shares])
        for share, logprobs in zip(shares, found, strict=True):
            share["reference"] = logprobs

    def train(self, shares: list[Batch]) -> dict[str, float]:
        """Every actor trains on its share; the numbers are means over all, so the first one's will do."""
        with self.phases("train"):
            stats: dict[str, float] = self.team.actor.map("train", [(share,) for share in shares])[0]
        return stats

    def push_weights(self, version: int) -> None:
        """The rollout workers fetch the new weights from the first actor; all actors have the same."""
        with self.phases("weights"):
            weights = self.team.actor[0].call("weights")
            self.team.rollout.call("load", weights, version)

    def evaluate(self, step: int) -> Evaluation:
        """The judges fetch the weights and answer the evaluation set between them."""
        count = len(self.team.judge)
        with self.scheduler.scope():
            self.team.judge.call("load", self.team.actor[0].call("weights"), step)
            parts = self.team.judge.map("evaluate", [(i, count) for i in range(count)])
        return Evaluation(step, self.elapsed(), mean(parts, "reward"), mean(parts, "exact"), parts[0]["sample"])

    def record(self, step: int, made: list[dict[str, Any]], stats: dict[str, float], took: float) -> Step:
        tokens = sum(part["tokens_made"] for part in made)
        return Step(
            step=step,
            seconds=self.elapsed(),
            reward=mean(made, "reward"),
            exact=mean(made, "exact"),
            tokens=tokens,
            tokens_per_second=tokens / took,
            phases=self.phases.take(),
            **stats,
        )

    def elapsed(self) -> float:
        return time.perf_counter() - self.begin


def run_demo(options: DemoOptions, console: Console | None = None) -> Summary:
    """Runs the demo from nothing to the drawn curve.

    Args:
        options: How to run.
        console: Where to show what happens; standard output when None.

    Returns:
        What came of it, and where the files are. Every process is gone by then.
    """
    check_needs()
    console, begin = console or Console(), time.perf_counter()
    report = train(options, console, begin)
    summary = report.finish(options.recipe.seed, time.perf_counter() - begin)
    console.print(summary_text(summary), markup=False, highlight=False, soft_wrap=True)
    return summary


def train(options: DemoOptions, console: Console, begin: float) -> Report:
    """Starts the roles, trains, ends them; every record goes to the report and the display."""
    with open_scheduler(options) as scheduler:
        report = Report(Path(scheduler.run_dir))
        console.print(f"{title(options)}, files in {report.directory}", markup=False, highlight=False, soft_wrap=True)
        demo = Demo(scheduler, options, begin)
        with display_on(console, options) as display:
            for record in demo.records():
                report.add(record)
                display.show(record)
    return report


def open_scheduler(options: DemoOptions) -> rolecall.Scheduler:
    """A scheduler whose calls leave tensors where they are, and whose workers have the engines' modules in memory."""
    return rolecall.scheduler(
        options.scheduler,
        experiment=options.experiment,
        trial=options.trial,
        fileroot=options.fileroot,
        tensors="remote",
        preload=["torch", ENGINES],
        **options.scheduler_options,
    )
