"""The real Slurm cluster of a test session: brought up when the first test asks for it, taken down after the last."""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path

import pytest

from tests.support.checkout import ROOT
from tests.support.waiting import poll, wait_for

SCRIPT = ROOT / "tests" / "clusters" / "slurm"
NOT_HERE = 2  # the script's exit code where the programs are missing or may not be used
CLEAN_WITHIN_S = 10.0


class SlurmCluster:
    """What tests ask of the cluster, by its own commands."""

    def __init__(self, folder: Path, exports: dict[str, str]) -> None:
        self.folder = folder
        self.exports = exports  # variables by which Slurm's commands find it

    def ask(self, *command: str) -> list[str]:
        """A command's lines."""
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, env=os.environ | self.exports)
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout.splitlines()

    def jobs(self) -> dict[str, str]:
        """Name and state of each job in the queue by its id."""
        rows = self.ask("squeue", "--noheader", "--format=%A|%j %T")
        return dict(tuple(row.split("|", 1)) for row in rows)  # type: ignore[misc]

    def nodes(self) -> dict[str, str]:
        rows = self.ask("sinfo", "--noheader", "--Node", "--partition=main", "--format=%N|%T")
        return dict(tuple(row.split("|")) for row in rows)  # type: ignore[misc]

    def wait_for(self, job: str, *states: str, within_s: float = 60.0) -> None:
        """Waits until a job is in one of these states."""
        command = ("squeue", "--noheader", "--states=all", f"--jobs={job}", "--format=%T")
        wait_for(lambda: self.ask(*command) in [[state] for state in states], within_s, f"job {job} in {states}")

    def blocker(self, *options: str) -> str:
        """A job that holds what it asks for until it is cancelled; returns its id when it runs."""
        command = ("sbatch", "--parsable", "--output=/dev/null", "--job-name=blocker", *options, "--wrap=sleep 600")
        (job,) = self.ask(*command)
        self.wait_for(job, "RUNNING")
        return job

    def mend(self) -> None:
        """Starts daemons that are gone. They outlive the test and so do not bear the mark of what it started."""
        unmarked = {name: value for name, value in os.environ.items() if name != "RC_TEST_SESSION"}
        subprocess.run([str(SCRIPT), "up", "--dir", str(self.folder)], env=unmarked, check=True, timeout=120)

    def resume(self, node: str) -> None:
        """Gives a node back that was taken down by hand, once its jobs have left it."""
        wait_for(lambda: "completing" not in self.nodes()[node] and not self.jobs(), CLEAN_WITHIN_S, f"idle {node}")
        if self.nodes()[node].startswith("down"):  # it may have come back by itself
            self.ask("scontrol", "update", f"NodeName={node}", "State=RESUME")

    def of_runs(self) -> set[str]:
        """The jobs in the queue, by id."""
        return set(self.jobs())

    def clean(self, kept: Collection[str] = ()) -> bool:
        return self.jobs().keys() <= set(kept) and set(self.nodes().values()) <= _fine(kept)

    def check_clean(self, kept: Collection[str] = (), within_s: float = CLEAN_WITHIN_S) -> None:
        """Nothing is in the queue but the jobs that were kept, and no node drained, down or still busy."""
        poll(lambda: self.clean(kept), within_s)
        left, nodes = {job: state for job, state in self.jobs().items() if job not in kept}, self.nodes()
        if left:
            self.ask("scancel", *left)  # for the tests that follow
        assert not left, f"left in the queue: {left}"
        assert set(nodes.values()) <= _fine(kept), f"nodes are {nodes}: {self.ask('sinfo', '-R')}"


def _fine(kept: Collection[str]) -> set[str]:
    """The states that nodes may be in: also busy, if jobs were kept."""
    return {"idle", "mixed", "allocated"} if kept else {"idle"}


def skip_if_missing(done: subprocess.CompletedProcess[str]) -> None:
    """Skips where the script says that its programs are missing or may not be used; in CI that is a failure."""
    if done.returncode == NOT_HERE and not os.environ.get("CI"):
        pytest.skip(f"no Slurm cluster here: {done.stderr.strip()}")


@contextlib.contextmanager
def running_slurm(*options: str) -> Iterator[SlurmCluster]:
    """Brings a cluster up and down. Without Slurm the test is skipped on a developer's machine, and fails in CI.

    Args:
        options: Further ones of the script.
    """
    folder = Path(tempfile.mkdtemp(prefix="rct-slurm-", dir="/tmp"))
    folder.chmod(0o755)  # munge wants it so
    command = [
        str(SCRIPT),
        "up",
        f"--dir={folder}",
        f"--owner={os.getpid()}",
        *options,
    ]  # gone with us, if we are killed
    done = subprocess.run(command, capture_output=True, text=True, timeout=180)
    try:
        skip_if_missing(done)
        assert done.returncode == 0, done.stderr
        yield SlurmCluster(folder, {"SLURM_CONF": done.stdout.strip().partition("SLURM_CONF=")[2]})
    finally:
        subprocess.run([SCRIPT, "down", "--dir", folder], check=True, timeout=180)
