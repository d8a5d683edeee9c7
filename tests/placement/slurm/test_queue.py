"""Waiting for a place: it is no time to start, its reason is shown, and who gives up leaves no job."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from rolecall import SlurmScheduler
from rolecall.cli.main import app
from rolecall.errors import WorkerCreationError
from rolecall.placement.slurm import commands as slurm_commands
from tests.placement.slurm.fake_slurm import FakeSlurm
from tests.support import sample_engines
from tests.support.checkout import SOURCES
from tests.support.slurm_cluster import SlurmCluster
from tests.support.waiting import wait_for

Make = Callable[..., SlurmScheduler]
SMALL: dict[str, Any] = {"cpu": 1, "mem": 1}
ALL_DEVICES = ("--nodes=2", "--ntasks-per-node=1", "--gres=gpu:4", "--mem=1G")


def ours(cluster: SlurmCluster) -> list[str]:
    """States of the jobs that are not the blocker's."""
    return [job.split()[1] for job in cluster.jobs().values() if not job.startswith("blocker")]


def test_a_pending_role_shows_why_it_waits_and_starts_when_there_is_room(
    make: Make, cluster: SlurmCluster, capfd: pytest.CaptureFixture[str]
) -> None:
    """It waits longer than a start may take."""
    blocker = cluster.blocker(*ALL_DEVICES)
    s, shown = make(start_timeout=4.0), ""
    with ThreadPoolExecutor(1) as pool:
        starting = pool.submit(s.start, "actor", gpu=1, **SMALL)

        def told() -> bool:
            nonlocal shown
            shown += capfd.readouterr().err
            return "role actor waits for its allocation: job" in shown and "Resources" in shown

        wait_for(told, 30, "reason for the wait")
        waited = threading.Event()
        assert not waited.wait(4.5) and not starting.done()
        cluster.ask("scancel", blocker)
        role = starting.result(timeout=60)
    role.create_engine(sample_engines.Echo)
    assert role.call("greet") == ["hello"]


def test_a_role_that_waits_too_long_is_taken_out_of_the_queue(make: Make, cluster: SlurmCluster) -> None:
    """After `queue_timeout` the job is cancelled, the reason is in the error, and the name is free."""
    blocker = cluster.blocker(*ALL_DEVICES)
    s = make(queue_timeout=3.0)
    with pytest.raises(WorkerCreationError, match=r"no allocation within 3 s; job \d+: Resources"):
        s.start("actor", gpu=1, **SMALL)
    assert ours(cluster) == []
    cluster.ask("scancel", blocker)
    s.start("actor", gpu=1, **SMALL)  # the name is free again


def test_reasons_that_are_not_about_room_are_shown_as_well(make: Make, cluster: SlurmCluster) -> None:
    """The error of a role that waited in vain holds Slurm's reason, whatever it is."""
    closed = make(partition="closed", queue_timeout=3.0)
    with pytest.raises(WorkerCreationError, match="PartitionDown"):
        closed.start("actor", **SMALL)
    short = make(partition="tiny", time=60, queue_timeout=3.0)
    with pytest.raises(WorkerCreationError, match=r"job \d+: Partition(Config|TimeLimit)"):
        short.start("actor", **SMALL)
    assert cluster.jobs() == {}


def test_a_pending_role_that_others_cancel_is_an_error_at_once(s: SlurmScheduler, cluster: SlurmCluster) -> None:
    """A job that somebody cancels while it waits fails its start with CANCELLED."""
    blocker = cluster.blocker(*ALL_DEVICES)
    with ThreadPoolExecutor(1) as pool:
        starting = pool.submit(s.start, "actor", gpu=1, **SMALL)
        wait_for(lambda: ours(cluster) == ["PENDING"], 30, "pending job")
        waits = "role actor waits for its allocation: job"
        wait_for(lambda: waits in s.inspect().waiting.get("actor", ""), 30, "reason in the run's state")
        shown = CliRunner().invoke(app, ["ps", "--fileroot", str(Path(s.run_dir).parents[1])]).stdout
        assert waits in shown and "no workers" in shown
        cluster.ask("scancel", "--name=rolecall-slurm-actor")
        with pytest.raises(WorkerCreationError, match=r"Slurm says of job \d+: CANCELLED"):
            starting.result(timeout=15)
    assert s.inspect().waiting == {}
    cluster.ask("scancel", blocker)


def test_closing_takes_a_pending_job_out_of_the_queue(s: SlurmScheduler, cluster: SlurmCluster) -> None:
    """Closing the scheduler cancels a pending job, and its start fails."""
    blocker = cluster.blocker(*ALL_DEVICES)
    with ThreadPoolExecutor(1) as pool:
        starting = pool.submit(s.start, "actor", gpu=1, **SMALL)
        wait_for(lambda: ours(cluster) == ["PENDING"], 30, "pending job")
        s.close()
        assert ours(cluster) == []
        with pytest.raises(WorkerCreationError, match="closed meanwhile"):
            starting.result(timeout=15)
    cluster.ask("scancel", blocker)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_controller_that_ends_while_it_waits_holds_no_place(
    cluster: SlurmCluster, tmp_path: Path, number: signal.Signals
) -> None:
    """After Ctrl-C the job is gone; after SIGKILL it gives its place back as soon as it gets one."""
    blocker = cluster.blocker(*ALL_DEVICES)
    program = tmp_path / "waiting.py"
    program.write_text(
        "import sys, rolecall\n"
        "if __name__ == '__main__':\n"
        "    with rolecall.scheduler('slurm', fileroot=sys.argv[1], preload=[], lease_s=4) as s:\n"
        "        s.start('actor', gpu=1, cpu=1, mem=1)\n"
    )
    env = {**os.environ, "PYTHONPATH": str(SOURCES)}
    with subprocess.Popen([sys.executable, program, tmp_path], env=env, stderr=subprocess.DEVNULL) as controller:
        wait_for(lambda: ours(cluster) == ["PENDING"], 30, "pending job")
        controller.send_signal(number)
        controller.wait(30)
    if number == signal.SIGINT:
        assert ours(cluster) == []
    cluster.ask("scancel", blocker)
    wait_for(lambda: not cluster.jobs(), 30, "empty queue")
    for path in Path(os.environ["TMPDIR"]).glob("rolecall-*/*"):  # a killed controller leaves its own
        assert number == signal.SIGKILL
        subprocess.run(["rm", "-r", path], check=True)


def test_what_sbatch_refuses_is_told_in_its_words(make: Make, cluster: SlurmCluster) -> None:
    """sbatch's own message is in the error."""
    with pytest.raises(WorkerCreationError, match=r"`sbatch --parsable`: exit code 1: .*[Rr]eservation"):
        make(reservation="nosuch").start("actor", **SMALL)
    assert cluster.jobs() == {}


def test_a_script_that_fails_is_told_with_its_last_words(make: Make) -> None:
    """The output of a script that fails before its guards start is in the error."""
    s = make(additional_bash_cmds=["echo the data is not mounted", "exit 3"])
    with pytest.raises(WorkerCreationError, match=r"(?s)FAILED \(NonZeroExitCode\).*the data is not mounted"):
        s.start("actor", **SMALL)


def test_nodes_without_the_interpreter_are_told_in_sruns_words(make: Make) -> None:
    """A missing interpreter on the nodes is in the error."""
    s = make(python="/no/such/python")
    with pytest.raises(WorkerCreationError, match=r"(?s)its output ends with.*/no/such/python: No such file"):
        s.start("actor", **SMALL)


def test_a_submission_that_nobody_confirms_is_found_and_taken_back(
    make: Make, cluster: SlurmCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """sbatch submits and never comes back."""
    fake = FakeSlurm(tmp_path / "bin", programs=[])
    real = os.environ["PATH"]
    fake.does("sbatch", f"PATH={real} sbatch <{fake.folder}/sbatch.input >/dev/null\nsleep 60")
    monkeypatch.setenv("PATH", f"{fake.folder}:{real}")
    monkeypatch.setattr(slurm_commands, "SUBMIT_S", 2.0)
    with pytest.raises(WorkerCreationError, match="no answer within 2 s"):
        make().start("actor", **SMALL)
    assert cluster.jobs() == {}
