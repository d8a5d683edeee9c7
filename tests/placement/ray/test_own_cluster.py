"""Where no cluster is named and none runs, a run has one of its own, which nobody else can use."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from rolecall import RayScheduler
from rolecall.placement.ray.outside import folder_of
from tests.support import sample_engines
from tests.support.checkout import SOURCES
from tests.support.ray_cluster import placement_of
from tests.support.worker_processes import processes

pytestmark = pytest.mark.slow("clusters of their own", seconds=13)

WITH_SOURCE = {"PYTHONPATH": str(SOURCES)}
STRANGER = "import ray, sys; ray.init(address=sys.argv[1], log_to_driver=False)"


CONTROLLER = """
import sys, time
from rolecall import RayScheduler
if __name__ == "__main__":
    s = RayScheduler(experiment="own", trial="t", fileroot=sys.argv[1], preload=[], quiet=True)
    s.start("actor", cpu=1, mem=1)
    print(s.run_id, s.placement.driver.pid, flush=True)
    time.sleep(600)
"""


@pytest.fixture(autouse=True)
def no_cluster_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of Ray is set, and none is found, as on a machine where it was just installed."""
    for name in [name for name in os.environ if name.startswith("RAY_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))


@pytest.mark.parametrize("owner", [os.getuid(), 65534], ids=["dead", "of-another-user"])
def test_a_cluster_that_is_dead_or_anothers_is_not_joined(owner: int, tmp_path: Path) -> None:
    """Ray's note of what runs on a host lies where others may write one too."""
    note = tmp_path / "ray" / "ray_current_cluster"
    note.parent.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        note.write_text(f"127.0.0.1:{1 if owner == os.getuid() else listening.getsockname()[1]}")
        os.chown(note, owner, -1)
        with RayScheduler(experiment="own", trial="t", fileroot=tmp_path, preload=[], quiet=True) as s:
            assert str(placement_of(s).address) != note.read_text()
            assert s.start("actor", cpu=1, mem=1).name == "actor"


def test_it_asks_for_a_token_that_the_user_alone_can_read(tmp_path: Path) -> None:
    """A run's own cluster refuses strangers, and its folder is private and removed with the run."""
    with RayScheduler(experiment="own", trial="t", fileroot=tmp_path, preload=[], quiet=True) as s:
        folder = folder_of(s.run_id)
        role = s.start("actor", cpu=1, mem=1)
        role.create_engine(sample_engines.Echo)
        assert role.call("greet") == ["hello"]
        assert (folder.stat().st_mode & 0o777, (folder / "token").stat().st_mode & 0o777) == (0o700, 0o600)
        stranger = subprocess.run(
            [sys.executable, "-c", STRANGER, str(placement_of(s).address)], capture_output=True, text=True, timeout=120
        )
        assert stranger.returncode != 0 and "AuthenticationError" in stranger.stderr
    assert not folder.exists()


def test_one_whose_driver_was_killed_ends_with_the_run(tmp_path: Path) -> None:
    """Closing ends the cluster though its driver is dead."""
    with RayScheduler(experiment="own", trial="t", fileroot=tmp_path, preload=[], quiet=True) as s:
        s.start("actor", cpu=1, mem=1)
        os.kill(placement_of(s).driver.pid, signal.SIGKILL)
    assert not processes(s.run_id) and not folder_of(s.run_id).exists()


def test_stop_ends_what_a_killed_controller_and_its_killed_driver_have_left(tmp_path: Path) -> None:
    """Nobody is there any more to end Ray's own processes and to remove the cluster's folder, a token in it."""
    (tmp_path / "controller.py").write_text(CONTROLLER)
    command = [sys.executable, str(tmp_path / "controller.py"), str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | WITH_SOURCE) as controller:
        assert controller.stdout is not None
        run_id, driver = controller.stdout.readline().split()
        os.kill(int(driver), signal.SIGKILL)
        controller.kill()
    assert processes(run_id) and folder_of(run_id).exists()
    stop = [sys.executable, "-m", "rolecall.cli", "stop", "--run", "own/t", "--fileroot", str(tmp_path), "--yes"]
    subprocess.run(stop, check=True, timeout=60, env=os.environ | WITH_SOURCE)
    assert not processes(run_id) and not folder_of(run_id).exists()
