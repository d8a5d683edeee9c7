"""The live panel of the demo: the latest records, laid out with rich. It never touches the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from rich.console import RenderableType
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from rolecall.demo.options import DemoOptions
from rolecall.demo.records import Evaluation, Record, Started, Step

WIDTH = 80
CURVE = 48  # columns of the reward curve and of the bars
SPARKS = " ▁▂▃▄▅▆▇█"
Row = tuple[RenderableType, RenderableType, RenderableType]  # label, graphic, number
COLORS = ("cyan", "magenta", "green", "yellow")


class DemoPanel:
    """Keeps the latest record of each kind and all rewards; `render` draws them."""

    def __init__(self, options: DemoOptions) -> None:
        self._options = options
        self._latest: dict[type[Record], Any] = {}
        self._rewards: list[float] = []

    def add(self, record: Record) -> None:
        self._latest[type(record)] = record
        if isinstance(record, Step):
            self._rewards.append(record.reward)

    def render(self) -> RenderableType:
        """The panel as it is now."""
        grid = Table.grid(padding=(0, 2))
        grid.add_column(style="bold")
        grid.add_column(width=CURVE)
        if started := self._latest.get(Started):
            grid.add_row("start", "until every role was ready", f"{started.seconds:.1f} s")
        if step := self._latest.get(Step):
            for row in self._step_rows(step):
                grid.add_row(*row)
        if e := self._latest.get(Evaluation):
            grid.add_row("evaluation", f"at step {e.step}, all correct {e.exact:.0%}, {e.sample}", f"{e.reward:.3f}")
        return Panel(grid, title=title(self._options), width=WIDTH)

    def _step_rows(self, step: Step) -> list[Row]:
        total = self._options.steps
        return [
            ("step", ProgressBar(total, step.step, CURVE), f"{step.step} of {total}"),
            ("reward", Text(sparkline(self._rewards, CURVE), style="cyan"), f"{step.reward:.3f}"),
            ("policy", f"loss {step.loss:+.3f}  kl {step.kl:.2f}  clipped {step.clipped:.1%}", ""),
            ("speed", f"{step.tokens_per_second:.0f} tokens/s", f"{step.seconds:.0f} s"),
            ("time", stacked_bar(step.phases, CURVE), f"{1e3 * sum(step.phases.values()):.0f} ms"),
            ("", legend(step.phases), ""),
        ]


def title(options: DemoOptions) -> str:
    """Title of the panel and of the first line."""
    return f"GRPO on 'sort five digits', seed {options.recipe.seed}"


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
    named = zip(COLORS, phases.items(), strict=False)
    return Text.assemble(*[(f"{name} {1e3 * seconds:.0f}  ", color) for color, (name, seconds) in named])
