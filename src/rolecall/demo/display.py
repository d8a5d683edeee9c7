"""The demo's progress display: a live panel in a terminal, plain lines otherwise. It only draws."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.live import Live

from rolecall.demo.options import DemoOptions
from rolecall.demo.panel import DemoPanel
from rolecall.demo.records import Evaluation, Record, Started, Step, Summary

LINE_EVERY = 10  # steps between plain lines


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
