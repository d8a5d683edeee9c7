"""The demo as a real job: processes, a process group, handles from worker to worker."""

from __future__ import annotations

import io
import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from rolecall import Scheduler
from rolecall.demo.loop import Demo, open_scheduler, run_demo
from rolecall.demo.options import DemoOptions, Recipe
from rolecall.demo.report import Evaluation, Step, Summary
from tests.support.schedulers_under_test import OF_PROCESSES, each

pytestmark = pytest.mark.slow("models learn, in processes of their own", seconds=16)

SMALL = DemoOptions(Recipe(hidden=16, heads=2, prompts=4, group=4, eval_prompts=8), steps=12, eval_every=5, trial="t0")
INTERRUPTED_WITHIN_S = 3.0
TRAINING = '"event": "step"'  # in metrics.jsonl, when the first step is done


def numbers(value: Any) -> list[float]:
    """Every number in a line of the metrics."""
    if isinstance(value, dict):
        return [n for inner in value.values() for n in numbers(inner)]
    return [value] if isinstance(value, int | float) else []


@dataclass(frozen=True)
class Run:
    """A short run that has ended: its folder, its last words and what it has shown."""

    folder: Path
    summary: Summary
    shown: str

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / "metrics.jsonl").read_text().splitlines()]


def run(fileroot: Path, scheduler: str = "local") -> Run:
    out = io.StringIO()
    summary = run_demo(replace(SMALL, fileroot=fileroot, scheduler=scheduler), Console(file=out))
    return Run(fileroot / "demo" / "t0", summary, out.getvalue())


def rewards(lines: list[dict[str, Any]]) -> list[float]:
    """Those of a run's steps and evaluations."""
    return [line["reward"] for line in lines if line["event"] in ("step", "evaluation")]


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run on this machine, which the tests of this file compare with others."""
    return run(tmp_path_factory.mktemp("local"))


def test_a_short_run_writes_its_files_and_says_where(local: Run) -> None:
    """Every step and evaluation is a line of finite numbers, the curve is a picture, and the end names them."""
    assert [line["step"] for line in local.lines if line["event"] == "step"] == list(range(1, 13))
    assert [line["step"] for line in local.lines if line["event"] == "evaluation"] == [0, 5, 10, 12]
    assert all(math.isfinite(n) for line in local.lines for n in numbers(line))
    assert list(local.lines[2]["phases"]) == ["sample", "reference", "train", "weights"]
    assert (local.folder / "reward.png").read_bytes().startswith(b"\x89PNG")
    assert local.summary.steps == 12
    shown = local.shown.splitlines()
    assert shown[0] == f"GRPO on 'sort five digits', seed 0, files in {local.folder}"
    assert shown[1].startswith("started in")
    assert any(line.startswith("step   10") and "reward" in line for line in shown)
    assert str(local.folder / "reward.png") in local.shown


def test_the_seed_decides_the_run(local: Run, tmp_path: Path) -> None:
    """The same seed gives the same rewards, whatever the machine was doing; another gives others."""
    first = rewards(local.lines)
    options = replace(SMALL, fileroot=tmp_path, trial="again", steps=4)
    with open_scheduler(options) as scheduler:
        assert seeded(scheduler, options, 0) == first[:5]
        scheduler.delete_workers()
        assert seeded(scheduler, options, 1) != first[:5]


def seeded(scheduler: Scheduler, options: DemoOptions, seed: int) -> list[float]:
    """The rewards of a training's first evaluation and steps, on a scheduler that has no roles yet."""
    demo = Demo(scheduler, replace(options, recipe=replace(options.recipe, seed=seed)), time.perf_counter())
    found = [record.reward for record in demo.records() if isinstance(record, Step | Evaluation)]
    return found[: options.steps + 1]


@pytest.mark.parametrize("backend", each([name for name in OF_PROCESSES if name != "local"]))
def test_the_same_script_learns_the_same_on_a_cluster(local: Run, tmp_path: Path, backend: str) -> None:
    """Step by step the rewards of the local run: only the scheduler's name differs."""
    assert rewards(run(tmp_path, backend).lines) == rewards(local.lines)


@pytest.mark.parametrize(("file", "text"), [("logs", ""), ("logs/actor-0.log", ""), ("metrics.jsonl", TRAINING)])
def test_ctrl_c_ends_everything_within_three_seconds(tmp_path: Path, file: str, text: str) -> None:
    """At the very start, while workers start, and in training: as soon as the run has written this."""
    with _started(tmp_path) as process:
        _wait_for(process, tmp_path / "demo" / "t0" / file, text)
        begin = time.monotonic()
        process.send_signal(signal.SIGINT)
        said = _rest(process)
    assert time.monotonic() - begin < INTERRUPTED_WITHIN_S
    assert process.returncode == 130, said
    assert "all processes of the run have ended" in said


def test_the_death_of_an_actor_ends_the_demo_with_its_name(tmp_path: Path) -> None:
    """Killed in the middle of training, it is named; the other actor's broken collective is not what the user sees."""
    with _started(tmp_path) as process:
        _wait_for(process, tmp_path / "demo" / "t0" / "metrics.jsonl", TRAINING)
        os.kill(_pid_of(tmp_path / "demo" / "t0" / "state.json", "actor/1"), signal.SIGKILL)
        said = _rest(process)
    assert process.returncode == 2, said
    (line,) = [line for line in said.splitlines() if line.startswith("rolecall") and "killed by SIGKILL" in line]
    assert "worker actor/1 " in line


def _started(fileroot: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "rolecall.cli", "demo", "--fileroot", str(fileroot), "--trial", "t0"]
    env = {**os.environ, "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env)


def _rest(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    said = process.stdout.read()
    process.wait()
    return said


def _pid_of(state: Path, worker: str) -> int:
    roles = json.loads(state.read_text())["roles"]
    return next(int(w["pid"]) for role in roles for w in role["workers"] if w["id"] == worker)


def _wait_for(process: subprocess.Popen[str], path: Path, text: str) -> None:
    """Until the demo has made a file or folder, and written this into it."""
    while not (path.exists() and (not text or text in path.read_text())):
        assert process.poll() is None
        time.sleep(0.005)


def test_the_controller_needs_no_torch() -> None:
    """It handles handles; torch, transformers and matplotlib are the workers' and the report's."""
    names = "torch", "transformers", "matplotlib"
    program = f"import sys, rolecall.demo.loop; print([m for m in {names} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
