"""Records of a demo's progress, and its files: every record as a line of JSON, and the reward curves as a PNG."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path


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


class Report:
    """Writes `metrics.jsonl` as records arrive, and `reward.png` at the end.

    Args:
        directory: The run directory; files of an earlier run in it are replaced.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.metrics, self.plot = directory / "metrics.jsonl", directory / "reward.png"
        self.steps: list[Step] = []
        self.evaluations: list[Evaluation] = []
        for left_over in (self.metrics, self.plot):
            left_over.unlink(missing_ok=True)

    def add(self, record: Record) -> None:
        """Appends a record to the file before it returns, so that an interrupted run keeps all records until then."""
        if isinstance(record, Step):
            self.steps.append(record)
        elif isinstance(record, Evaluation):
            self.evaluations.append(record)
        with self.metrics.open("a") as out:
            out.write(json.dumps({"event": type(record).__name__.lower(), **asdict(record)}) + "\n")

    def finish(self, seed: int, seconds: float) -> Summary:
        """Draws the curves and writes the summary as the last line."""
        draw(self.steps, self.evaluations, self.plot)
        last = self.evaluations[-1]
        trained = sum(s.tokens / s.tokens_per_second for s in self.steps)
        summary = Summary(
            seed=seed,
            steps=len(self.steps),
            seconds=seconds,
            first=self.evaluations[0].reward,
            reward=last.reward,
            exact=last.exact,
            tokens_per_second=sum(s.tokens for s in self.steps) / trained,
            directory=str(self.directory),
            metrics=str(self.metrics),
            plot=str(self.plot),
        )
        self.add(summary)
        return summary


def draw(steps: list[Step], evaluations: list[Evaluation], path: Path) -> None:
    """Draws the rewards per step, and below them the time per phase."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 7), layout="constrained")
    FigureCanvasAgg(figure)  # opens no window, whichever matplotlib backend the user has set
    above, below = figure.subplots(2, 1, height_ratios=[2, 1], sharex=True)
    trained, at = [s.step for s in steps], [e.step for e in evaluations]
    above.plot(trained, [s.reward for s in steps], color="0.7", label="training (sampled)")
    above.plot(at, [e.reward for e in evaluations], marker="o", markersize=3, label="evaluation (greedy)")
    above.plot(at, [e.exact for e in evaluations], linestyle="--", label="evaluation: all five correct")
    above.set(ylabel="mean reward (share of correct positions)", ylim=(0, 1))
    above.grid(alpha=0.3)
    above.legend(loc="lower right")
    names = list(steps[0].phases)
    below.stackplot(trained, [[1e3 * s.phases[n] for s in steps] for n in names], labels=names)
    below.set(xlabel="step", ylabel="ms per step")
    below.legend(loc="upper right", ncols=len(names), fontsize="small")
    figure.suptitle('GRPO on "sort five digits", from random weights')
    figure.savefig(path, dpi=120)
