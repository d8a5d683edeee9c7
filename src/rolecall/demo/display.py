"""The demo's progress display: a live panel in a terminal, plain lines otherwise. It only draws."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

from rich.console import Console, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from rolecall.demo.options import DemoOptions
from rolecall.demo.report import Evaluation, Record, Started, Step, Summary

LINE_EVERY = 10  # steps between plain lines
WIDTH = 80
CURVE = 48  # columns of the reward curve and of the bars
SPARKS = " ▁▂▃▄▅▆▇█"
Row = tuple[RenderableType, RenderableType, RenderableType]  # label, graphic, number
COLORS = ("cyan", "magenta", "green", "yellow")


@contextmanager
def display_on(console: Console, options: DemoOptions) -> Iterator[Callable[[Record], None]]:
    """What shows records as they arrive: a live panel on a terminal, else plain lines. They stay on the screen."""
    if console.is_terminal:
        panel = DemoPanel(options)
        with Live(console=console, get_renderable=panel.render, refresh_per_second=8):
            yield panel.add
        return

    def show(record: Record) -> None:
        if line := plain_line(record):
            console.print(line, markup=False, highlight=False, soft_wrap=True)

    yield show


def plain_line(record: Record) -> str:
    """A record as one line; empty for steps that are not shown."""
    match record:
        case Started():
            roles = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in record.roles.items())
            return f"started in {record.seconds:.1f} s: {roles}"
        case Step() if record.step % LINE_EVERY == 0:
            where = " ".join(f"{name} {1e3 * seconds:.0f}" for name, seconds in record.phases.items())
            return (
                f"step {record.step:4d} {record.seconds:6.1f} s  reward {record.reward:.3f}  kl {record.kl:.2f}  "
                f"{record.tokens_per_second:6.0f} tokens/s  ms: {where}"
            )
        case Evaluation():
            return (
                f"step {record.step:4d} {record.seconds:6.1f} s  evaluation {record.reward:.3f}, "
                f"all correct {record.exact:.3f}, e.g. {record.sample}"
            )
    return ""


def summary_text(summary: Summary) -> str:
    """The final text: rewards, duration, paths of the files."""
    return (
        f"evaluation reward {summary.first:.3f} -> {summary.reward:.3f} ({summary.exact:.0%} all correct, greedy) "
        f"in {summary.steps} steps, {summary.seconds:.0f} s; all processes have ended\n"
        f"curve    {summary.plot}\n"
        f"numbers  {summary.metrics}\n"
        f"logs     {summary.directory}/logs"
    )


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
