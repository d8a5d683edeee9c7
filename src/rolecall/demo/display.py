"""The demo's progress display: a live panel in a terminal, plain lines otherwise. It only draws."""

from __future__ import annotations

from typing import Protocol, Self

from rich.console import Console
from rich.live import Live

from rolecall.demo.options import DemoOptions
from rolecall.demo.panel import DemoPanel
from rolecall.demo.records import Evaluation, Record, Started, Step, Summary

LINE_EVERY = 10  # steps between plain lines


class Display(Protocol):
    """Shows records as they arrive. A context manager; its output stays on the screen."""

    def show(self, record: Record) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(self, *exc: object) -> None: ...


def display_on(console: Console, options: DemoOptions) -> Display:
    """A live panel for a terminal, plain lines for anything else."""
    return LiveDisplay(console, options) if console.is_terminal else PlainDisplay(console)


class PlainDisplay:
    """One line at the start, at every evaluation, and every few steps."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def show(self, record: Record) -> None:
        line = plain_line(record)
        if line:
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        return None


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


class LiveDisplay:
    """A panel that is redrawn in place."""

    def __init__(self, console: Console, options: DemoOptions) -> None:
        self._panel = DemoPanel(options)
        self._live = Live(console=console, get_renderable=self._panel.render, refresh_per_second=8)

    def show(self, record: Record) -> None:
        self._panel.add(record)

    def __enter__(self) -> Self:
        self._live.start(refresh=True)
        return self

    def __exit__(self, *exc: object) -> None:
        self._live.stop()


def summary_text(summary: Summary) -> str:
    """The final text: rewards, duration, paths of the files."""
    return (
        f"evaluation reward {summary.first:.3f} -> {summary.reward:.3f} ({summary.exact:.0%} all correct, greedy) "
        f"in {summary.steps} steps, {summary.seconds:.0f} s; all processes have ended\n"
        f"curve    {summary.plot}\n"
        f"numbers  {summary.metrics}\n"
        f"logs     {summary.directory}/logs"
    )
