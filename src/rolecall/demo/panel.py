"""The live picture of a demo: what was last heard, laid out with rich. It never touches the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from rolecall.demo.options import DemoOptions
from rolecall.demo.records import Evaluation, Record, Started, Step

WIDTH = 80
CURVE = 48  # columns of the reward curve and the bars
SPARKS = " ▁▂▃▄▅▆▇█"
COLORS = ("cyan", "magenta", "green", "yellow")


class DemoPanel:
    """Keeps the last record of each kind and all rewards; `render` draws them."""

    def __init__(self, options: DemoOptions) -> None:
        self._options = options
        self._started: Started | None = None
        self._step: Step | None = None
        self._evaluation: Evaluation | None = None
        self._rewards: list[float] = []

    def add(self, record: Record) -> None:
        match record:
            case Started():
                self._started = record
            case Step():
                self._step = record
                self._rewards.append(record.reward)
            case Evaluation():
                self._evaluation = record

    def render(self) -> RenderableType:
        """The panel as it is now."""
        title = f"GRPO on 'sort five digits', seed {self._options.recipe.seed}"
        subtitle = self._started.directory if self._started else None
        return Panel(self._body(), title=title, subtitle=subtitle, width=WIDTH)

    def _body(self) -> RenderableType:
        if self._started is None:
            return Text("starting actor, ref, rollout, eval-rollout ...")
        grid = Table.grid(padding=(0, 2))
        for label, value in self._rows(self._started):
            grid.add_row(Text(label, style="bold"), value)
        return grid

    def _rows(self, started: Started) -> list[tuple[str, RenderableType]]:
        rows: list[tuple[str, RenderableType]] = [("start", Text(f"{started.seconds:.1f} s until every role was up"))]
        if self._step is not None:
            rows += self._step_rows(self._step)
        if self._evaluation is not None:
            e = self._evaluation
            rows.append(("evaluation", Text(f"{e.reward:.3f} at step {e.step}, all right {e.exact:.0%}: {e.sample}")))
        return rows

    def _step_rows(self, step: Step) -> list[tuple[str, RenderableType]]:
        total = self._options.steps
        return [
            (
                "step",
                Group(ProgressBar(total, step.step, CURVE), Text(f"{step.step} of {total}, {step.seconds:.0f} s")),
            ),
            ("reward", Group(Text(sparkline(self._rewards, CURVE), style="cyan"), Text(f"{step.reward:.3f}"))),
            ("speed", Text(f"{step.tokens_per_second:.0f} tokens/s")),
            ("policy", Text(f"loss {step.loss:+.3f}  kl {step.kl:.2f}  clipped {step.clipped:.1%}")),
            ("time", Group(stacked_bar(step.phases, CURVE), legend(step.phases))),
        ]


def sparkline(values: Sequence[float], width: int) -> str:
    """Values between 0 and 1 as one line of blocks, averaged to fit into `width` columns."""
    columns = min(width, len(values))
    cuts = [len(values) * i // columns for i in range(columns + 1)] if columns else []
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(cuts)]
    return "".join(SPARKS[round(min(1.0, max(0.0, m)) * (len(SPARKS) - 1))] for m in means)


def stacked_bar(phases: dict[str, float], width: int) -> Text:
    """Where a step's time went, as one bar of `width` columns."""
    bar, spent, drawn = Text(), 0.0, 0
    for color, seconds in zip(COLORS, phases.values(), strict=False):
        spent += seconds
        end = round(width * spent / sum(phases.values()))
        bar.append("█" * (end - drawn), style=color)
        drawn = end
    return bar


def legend(phases: dict[str, float]) -> Text:
    """The bar's colours, with milliseconds."""
    named = [
        (f"{name} {1e3 * seconds:.0f} ms  ", color)
        for color, (name, seconds) in zip(COLORS, phases.items(), strict=False)
    ]
    return Text.assemble(*named)
