"""What is shown, from records alone."""

from __future__ import annotations

import io

from rich.console import Console

from rolecall.demo.display import DemoPanel, display_on, plain_line, sparkline, stacked_bar
from rolecall.demo.options import DemoOptions
from rolecall.demo.report import Evaluation, Record, Started, Step

PHASES = {"sample": 0.010, "reference": 0.010, "train": 0.060, "weights": 0.020}


def make_step(step: int) -> Step:
    return Step(step, 2.0 * step, 0.5, 0.1, 0.01, 0.3, 0.05, 1.0, 1280, 12800.0, PHASES)


STARTED = Started(1.5, {"actor": 0.8, "ref": 0.7})
EVALUATION = Evaluation(20, 40.0, 0.625, 0.25, "31415=11345")


def drawn(records: list[Record]) -> str:
    panel, out = DemoPanel(DemoOptions(steps=100)), io.StringIO()
    for record in records:
        panel.add(record)
    Console(file=out, width=100).print(panel.render())
    return out.getvalue()


def test_without_a_terminal_every_tenth_step_is_a_line() -> None:
    """Nine steps say nothing; the tenth says reward, speed and where the time went."""
    assert [bool(plain_line(make_step(i))) for i in range(1, 11)] == [False] * 9 + [True]
    line = plain_line(make_step(10))
    assert "reward 0.500" in line
    assert "12800 tokens/s" in line
    assert "train 60" in line


def test_the_plain_lines_name_the_roles_and_every_evaluation() -> None:
    """What a log needs to be of use later."""
    assert "actor 0.80 s, ref 0.70 s" in plain_line(STARTED)
    assert "evaluation 0.625" in plain_line(EVALUATION)


def test_a_console_that_is_no_terminal_gets_plain_lines() -> None:
    """No escape sequence ends up in a log file."""
    out = io.StringIO()
    with display_on(Console(file=out), DemoOptions()) as show:
        show(EVALUATION)
    assert "evaluation 0.625" in out.getvalue() and "\x1b" not in out.getvalue()


def test_the_panel_shows_what_is_known_so_far() -> None:
    """Before the first record it is empty; later it has everything of the last ones."""
    assert "seed 0" in drawn([])
    everything = drawn([STARTED, make_step(1), make_step(2), EVALUATION])
    for part in ("seed 0", "2 of 100", "0.500", "12800 tokens/s", "kl 0.30", "train 60", "31415=11345"):
        assert part in everything


def test_a_curve_of_any_length_fits() -> None:
    """Few values are one column each, many are averaged; 0 is blank, 1 is full."""
    assert sparkline([], 10) == ""
    assert sparkline([0.0, 1.0], 10) == " █"
    assert sparkline([0.0, 1.0] * 100, 10) == "▄" * 10


def test_the_bar_is_divided_as_the_time_was() -> None:
    """All columns are used, each phase has its share."""
    bar = stacked_bar(PHASES, 50)
    assert len(bar) == 50
    assert [span.end - span.start for span in bar.spans] == [5, 5, 30, 10]
