"""The demo: GRPO on "sort five digits" as a job of four roles, written against the public interface alone.

Trajectories and weights go from worker to worker; this process sees handles and a few numbers per step. It does not
import torch.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

import rolecall
from rolecall import RTensor
from rolecall.demo.display import display_on, summary_text
from rolecall.demo.options import DemoOptions, check_needs
from rolecall.demo.panel import title
from rolecall.demo.records import Evaluation, Started, Step, Summary
from rolecall.demo.report import Report
from rolecall.demo.roles import ENGINES, QWEN2, DemoRoles, Phases

Batch = dict[str, RTensor]


class Demo:
    """The training loop over the four roles.

    Args:
        scheduler: Owns the workers.
        options: The settings.
        begin: When the demo began, in seconds of `time.perf_counter`.
    """

    def __init__(self, scheduler: rolecall.Scheduler, options: DemoOptions, begin: float) -> None:
        self.scheduler, self.options, self.recipe, self.begin = scheduler, options, options.recipe, begin
        self.phases = Phases()
        self.roles = DemoRoles.start(scheduler, self.recipe, options.actors, options.rollouts, self.phases)

    def records(self) -> Iterator[Started | Step | Evaluation]:
        """Runs the training and yields a record of each event: all roles started, a step done, an evaluation done."""
        yield Started(self.elapsed(), self.phases.take())
        yield self.evaluate(0)
        step = 0
        end = self.elapsed() + self.options.seconds  # the time in a cluster's queue does not count
        while step < self.options.steps and self.elapsed() < end:
            step += 1
            yield self.step(step)
            if step % self.options.eval_every == 0:
                yield self.evaluate(step)
        if step % self.options.eval_every:
            yield self.evaluate(step)

    def step(self, step: int) -> Step:
        """One step: sample, compute the reference logprobs, train, push the new weights to the rollout workers."""
        begin = time.perf_counter()
        with self.scheduler.scope():
            made = self.sample(step)
            shares = split(concatenate(made), len(self.roles.actor))
            self.add_reference_logprobs(shares)
            stats = self.train(shares)
            self.push_weights(step)
        return self.record(step, made, stats, time.perf_counter() - begin)

    def sample(self, step: int) -> list[dict[str, Any]]:
        """Each rollout worker samples answers to its part of the prompts; the trajectories stay there."""
        count = len(self.roles.rollout)
        first_seed = (self.recipe.seed * 1_000_000 + step) * count
        with self.phases("sample"):
            work = [(first_seed + i, self.recipe.prompts // count) for i in range(count)]
            return self.roles.rollout.map("generate", work)

    def add_reference_logprobs(self, shares: list[Batch]) -> None:
        """Adds the reference model's logprobs of its tokens to every share."""
        with self.phases("reference"):
            found = self.roles.ref.map("logprobs", [(share["tokens"],) for share in shares])
        for share, logprobs in zip(shares, found, strict=True):
            share["reference"] = logprobs

    def train(self, shares: list[Batch]) -> dict[str, float]:
        """Each actor trains on its share. The statistics are averaged over the ranks, so rank 0's are returned."""
        with self.phases("train"):
            stats: dict[str, float] = self.roles.actor.map("train", [(share,) for share in shares])[0]
        return stats

    def push_weights(self, version: int) -> None:
        """The rollout workers fetch the new weights from actor/0; all actors have the same weights."""
        with self.phases("weights"):
            weights = self.roles.actor[0].call("weights")
            self.roles.rollout.call("load", weights, version)

    def evaluate(self, step: int) -> Evaluation:
        """The `eval-rollout` workers fetch the weights; each answers an equal part of the evaluation set."""
        count = len(self.roles.eval_rollout)
        with self.scheduler.scope():
            self.roles.eval_rollout.call("load", self.roles.actor[0].call("weights"), step)
            parts = self.roles.eval_rollout.map("evaluate", [(i, count) for i in range(count)])
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
    """Runs the whole demo: starts the roles, trains, ends the run and draws the reward curve.

    Args:
        options: The settings.
        console: Where progress is shown; standard output when None.

    Returns:
        The results, and the paths of the files. Every process of the run has ended by then.
    """
    check_needs()
    console, begin = console or Console(), time.perf_counter()
    report = train(options, console, begin)
    summary = report.finish(options.recipe.seed, time.perf_counter() - begin)
    console.print(summary_text(summary), markup=False, highlight=False, soft_wrap=True)
    return summary


def train(options: DemoOptions, console: Console, begin: float) -> Report:
    """Starts the roles, trains and ends them; each record goes to the report and to the display."""
    with open_scheduler(options) as scheduler:
        report = Report(Path(scheduler.run_dir))
        console.print(f"{title(options)}, files in {report.directory}", markup=False, highlight=False, soft_wrap=True)
        demo = Demo(scheduler, options, begin)
        with display_on(console, options) as show:
            for record in demo.records():
                report.add(record)
                show(record)
    return report


def open_scheduler(options: DemoOptions) -> rolecall.Scheduler:
    """A scheduler whose calls return handles of tensors, and whose workers fork with the engines' module imported."""
    return rolecall.scheduler(
        options.scheduler,
        experiment=options.experiment,
        trial=options.trial,
        fileroot=options.fileroot,
        tensors="remote",
        preload=["torch", QWEN2, ENGINES],
        **options.scheduler_options,
    )


def concatenate(parts: Sequence[dict[str, Any]]) -> Batch:
    """One batch from the results of all workers; values that are not handles are left out. No byte is moved."""
    keys = [key for key, value in parts[0].items() if isinstance(value, RTensor)]
    return {key: RTensor.cat([part[key] for part in parts]) for key in keys}


def split(batch: Batch, count: int) -> list[Batch]:
    """`count` batches whose sizes differ by one trajectory at most. No byte is moved."""
    columns = {key: handle.chunk(count) for key, handle in batch.items()}
    return [{key: shares[i] for key, shares in columns.items()} for i in range(count)]


def mean(parts: Sequence[dict[str, Any]], key: str) -> float:
    """Mean of a number over workers that processed equally many samples."""
    return float(sum(part[key] for part in parts) / len(parts))
