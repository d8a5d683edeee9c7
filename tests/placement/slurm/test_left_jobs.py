"""A job whose controller was killed while it waits: the command line finds it in the queue, and ends it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from rolecall import SlurmScheduler
from rolecall.errors import WorkerConfigurationError, WorkerFailedError
from rolecall.placement.outside import Removal
from tests.support import sample_engines
from tests.support.checkout import SOURCES
from tests.support.slurm_cluster import SlurmCluster
from tests.support.waiting import wait_for

ALL_DEVICES = ("--nodes=2", "--ntasks-per-node=1", "--gres=gpu:4", "--mem=1G")
SMALL: dict[str, Any] = {"cpu": 1, "mem": 1}
PROGRAM = """
import sys, rolecall
if __name__ == "__main__":
    with rolecall.scheduler("slurm", experiment="left", trial="t", fileroot=sys.argv[1], preload=[], lease_s=4) as s:
        s.start("first", cpu=1, mem=1)
        s.start("second", gpu=1, cpu=1, mem=1)
"""


def rolecall(command: str, fileroot: Path, *arguments: str) -> tuple[int, Any]:
    """What a command says as JSON, and how it ended."""
    argv = [sys.executable, "-m", "rolecall.cli", command, "--fileroot", str(fileroot), "--json", *arguments]
    env = {**os.environ, "PYTHONPATH": str(SOURCES)}
    done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=100)
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def stop(fileroot: Path) -> tuple[int, Any]:
    return rolecall("stop", fileroot, "--run", "left/t", "--yes")


def test_stop_ends_the_jobs_of_a_run_whose_controller_lives(
    s: SlurmScheduler, cluster: SlurmCluster, tmp_path: Path
) -> None:
    """It is told who did it, and starts nothing any more: whoever stops a run means all of it."""
    role = s.start("actor", replicas=2, gpu=4, **SMALL)
    role.create_engine(sample_engines.Echo)
    code, report = rolecall("stop", tmp_path / "root", "--run", "slurm/t0", "--yes")
    assert (code, report["clean"], report["elsewhere"]) == (0, True, []), report
    assert cluster.jobs() == {}
    with pytest.raises(WorkerFailedError, match="was stopped by `rolecall stop`"):
        role[0].call("greet")
    s.delete_workers("actor")
    with pytest.raises(WorkerConfigurationError, match="was stopped by `rolecall stop`"):
        s.start("actor", **SMALL)


@pytest.fixture
def blocker(cluster: SlurmCluster) -> Iterator[str]:
    job = cluster.blocker(*ALL_DEVICES)
    yield job
    cluster.ask("scancel", job)


@pytest.fixture
def left(cluster: SlurmCluster, blocker: str, tmp_path: Path) -> Path:
    """The fileroot of a run with a role that runs, another that waits, and a controller that was killed."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    env = {**os.environ, "PYTHONPATH": str(SOURCES)}
    with subprocess.Popen([sys.executable, program, tmp_path], env=env, stderr=subprocess.DEVNULL) as controller:
        wait_for(lambda: "rolecall-left-second PENDING" in cluster.jobs().values(), 60, "job that waits")
        controller.kill()
    return tmp_path


def job_named(cluster: SlurmCluster, name: str) -> str:
    (found,) = [job for job, shown in cluster.jobs().items() if shown.startswith(name)]
    return found


def test_stop_takes_the_jobs_of_a_run_out_of_the_queue_and_no_others(
    cluster: SlurmCluster, blocker: str, left: Path
) -> None:
    """`stop` cancels the run's own jobs, reports them, and is idempotent."""
    waiting = job_named(cluster, "rolecall-left-second")
    code, report = stop(left)
    assert (code, report["clean"]) == (0, True), report
    assert f"job {waiting}" in report["allocations"]["ended"] and report["allocations"]["left"] == []
    assert list(cluster.jobs()) == [blocker]
    code, report = stop(left)
    assert (code, report["allocations"]) == (0, asdict(Removal(asked=True)))


def test_doctor_names_the_jobs_and_the_command_that_ends_them(cluster: SlurmCluster, left: Path) -> None:
    """`doctor` finds the jobs of a run without a controller and prints the `stop` that ends them."""
    waiting = job_named(cluster, "rolecall-left-second")
    wait_for(lambda: "rolecall-left-first RUNNING" not in cluster.jobs().values(), 30, "end by the lease")
    _, report = rolecall("doctor", left)
    (finding,) = [found for found in report["findings"] if "left job" in found["seen"]]
    assert f"left/t has no controller any more but left job {waiting}" in finding["seen"]
    assert finding["command"] == f"rolecall stop --run {left}/left/t --yes"
    assert rolecall("ps", left, "--run", "left/t")[1]["scheduler"] == "slurm"
    assert stop(left)[0] == 0


def test_a_slurm_that_does_not_answer_is_no_proof(
    cluster: SlurmCluster, left: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`stop` reports failure if Slurm could not be asked, and succeeds once it can."""
    with monkeypatch.context() as elsewhere:
        elsewhere.setenv("PATH", str(left))
        code, report = stop(left)
    assert code == 1 and not report["clean"]
    assert "no such program" in report["allocations"]["unknown"]
    assert stop(left)[0] == 0
