"""The demo: GRPO on "sort five digits" as a job of four roles, written against the public interface alone.

Trajectories and weights go from worker to worker; this process sees handles and a few numbers per step. It does not
import torch.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

import rolecall
from rolecall import RTensor
from rolecall.demo.display import display_on, summary_text, title
from rolecall.demo.options import DemoOptions, check_needs
from rolecall.demo.report import Evaluation, Report, Started, Step, Summary

ENGINES = "rolecall.demo.engines"
QWEN2 = "transformers.models.qwen2.modeling_qwen2"  # what the engines import when they build a model
Batch = dict[str, RTensor]


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


class Demo:
    """The training loop over the four roles, which are started one after the other.

    Args:
        scheduler: Owns the workers.
        options: The settings.
        begin: When the demo began, in seconds of `time.perf_counter`.

    Attributes:
        phases: How long each start took, then each phase of a step.
        actor: Trains the policy; its workers form a process group and average their gradients.
        ref: Forked from `actor`; holds the untrained reference model.
        rollout: Samples and scores answers; stores the trajectories.
        eval_rollout: The role `eval-rollout`, forked from `rollout`; answers the evaluation set.
    """

    def __init__(self, scheduler: rolecall.Scheduler, options: DemoOptions, begin: float) -> None:
        self.scheduler, self.options, self.recipe, self.begin = scheduler, options, options.recipe, begin
        self.phases = Phases()
        with self.phases("actor"):
            self.actor = scheduler.start("actor", options.actors, cpu=1, mem=2, process_group=True)
            self.actor.create_engine(f"{ENGINES}.Actor", self.recipe)
        with self.phases("ref"):
            self.ref = self.actor.fork("ref")
            self.ref.create_engine(f"{ENGINES}.Reference", self.recipe)
        with self.phases("rollout"):
            self.rollout = scheduler.start("rollout", options.rollouts, cpu=1, mem=2)
            self.rollout.create_engine(f"{ENGINES}.Rollout", self.recipe)
        with self.phases("eval-rollout"):
            self.eval_rollout = self.rollout.fork("eval-rollout")
            self.eval_rollout.create_engine(f"{ENGINES}.Rollout", self.recipe)
        with self.phases("process group"):
            self.actor.call("connect")

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
            shares = split(concatenate(made), len(self.actor))
            self.add_reference_logprobs(shares)
            stats = self.train(shares)
            self.push_weights(step)
        return self.record(step, made, stats, time.perf_counter() - begin)

    def sample(self, step: int) -> list[dict[str, Any]]:
        """Each rollout worker samples answers to its part of the prompts; the trajectories stay there."""
        count = len(self.rollout)
        first_seed = (self.recipe.seed * 1_000_000 + step) * count
        with self.phases("sample"):
            work = [(first_seed + i, self.recipe.prompts // count) for i in range(count)]
            return self.rollout.map("generate", work)

    def add_reference_logprobs(self, shares: list[Batch]) -> None:
        """Adds the reference model's logprobs of its tokens to every share."""
        with self.phases("reference"):
            found = self.ref.map("logprobs", [(share["tokens"],) for share in shares])
        for share, logprobs in zip(shares, found, strict=True):
            share["reference"] = logprobs

    def train(self, shares: list[Batch]) -> dict[str, float]:
        """Each actor trains on its share. The statistics are averaged over the ranks, so rank 0's are returned."""
        with self.phases("train"):
            stats: dict[str, float] = self.actor.map("train", [(share,) for share in shares])[0]
        return stats

    def push_weights(self, version: int) -> None:
        """The rollout workers fetch the new weights from actor/0; all actors have the same weights."""
        with self.phases("weights"):
            weights = self.actor[0].call("weights")
            self.rollout.call("load", weights, version)

    def evaluate(self, step: int) -> Evaluation:
        """The `eval-rollout` workers fetch the weights; each answers an equal part of the evaluation set."""
        count = len(self.eval_rollout)
        with self.scheduler.scope():
            self.eval_rollout.call("load", self.actor[0].call("weights"), step)
            parts = self.eval_rollout.map("evaluate", [(i, count) for i in range(count)])
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
