"""The files of a run, from records alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rolecall.demo.loop import Phases
from rolecall.demo.options import DemoOptions, Recipe, check_needs
from rolecall.demo.report import Evaluation, Report, Started, Step
from rolecall.errors import WorkerConfigurationError


def make_step(step: int) -> Step:
    return Step(step, 1.0 * step, 0.1 * step, 0.0, 0.01, 0.3, 0.05, 1.0, 100, 50.0, {"sample": 0.1, "train": 0.3})


def test_every_record_is_in_the_file_at_once(tmp_path: Path) -> None:
    """An interrupted run keeps all it had: the lines are there before anything is closed."""
    report = Report(tmp_path)
    report.add(Started(1.0, {"actor": 0.5}))
    report.add(make_step(1))
    lines = [json.loads(line) for line in report.metrics.read_text().splitlines()]
    assert [line["event"] for line in lines] == ["started", "step"]
    assert lines[1]["phases"] == {"sample": 0.1, "train": 0.3}


def test_the_end_draws_the_curve_and_sums_up(tmp_path: Path) -> None:
    """The picture is a PNG; the summary is returned and is the last line."""
    report = Report(tmp_path)
    report.add(Evaluation(0, 1.0, 0.06, 0.0, "31415=....."))
    report.add(make_step(1))
    report.add(make_step(2))
    report.add(Evaluation(2, 3.0, 0.7, 0.2, "31415=11345"))
    summary = report.finish(seed=0, seconds=4.0)
    assert Path(summary.plot).read_bytes().startswith(b"\x89PNG")
    assert (summary.steps, summary.first, summary.reward, summary.tokens_per_second) == (2, 0.06, 0.7, 50.0)
    last = json.loads(report.metrics.read_text().splitlines()[-1])
    assert last["event"] == "summary"
    assert last["reward"] == 0.7


def test_a_run_in_the_same_directory_starts_new_files(tmp_path: Path) -> None:
    """Numbers of two runs are never mixed."""
    Report(tmp_path).add(make_step(1))
    again = Report(tmp_path)
    again.add(make_step(2))
    assert [json.loads(line)["step"] for line in again.metrics.read_text().splitlines()] == [2]


def test_phases_add_up_and_start_anew() -> None:
    """A phase entered twice counts once, with both times; `take` empties."""
    phases = Phases()
    for _ in range(2):
        with phases("sample"):
            pass
    with phases("train"):
        pass
    assert list(phases.take()) == ["sample", "train"]
    assert phases.take() == {}


def test_what_is_not_installed_is_said_before_anything_starts() -> None:
    """A missing extra is named with the command that installs it."""
    check_needs()
    with pytest.raises(WorkerConfigurationError, match=r"needs no_such_module; pip install 'rolecall\[rl\]'"):
        check_needs(("json", "no_such_module"))


def test_prompts_that_cannot_be_shared_out_evenly_are_refused() -> None:
    """The message says what would do."""
    with pytest.raises(WorkerConfigurationError, match="multiple of the 2 rollout workers"):
        DemoOptions(Recipe(prompts=3))
