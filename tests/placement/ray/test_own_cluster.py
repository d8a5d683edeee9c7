"""Where no cluster is named and none runs, a run has one of its own, which nobody else can use."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rolecall import RayScheduler
from rolecall.errors import WorkerConfigurationError
from rolecall.placement.ray import driver
from rolecall.placement.ray.placement import folder_of
from rolecall.transport import ray_internals
from tests.support import sample_engines
from tests.support.checkout import SOURCES
from tests.support.ray_cluster import placement_of
from tests.support.worker_processes import processes

pytestmark = pytest.mark.slow("clusters of their own", seconds=13)

DEAD = "127.0.0.1:1"
WITH_SOURCE = {"PYTHONPATH": str(SOURCES)}
STRANGER = "import ray, sys; ray.init(address=sys.argv[1], log_to_driver=False)"


CONTROLLER = """
import sys, time
from rolecall import RayScheduler
from rolecall.errors import WorkerConfigurationError
if __name__ == "__main__":
    s = RayScheduler(accelerator="npu", experiment="own", trial="t", fileroot=sys.argv[1], preload=[], quiet=True)
    try:
        s.start("refused", gpu=1)
    except WorkerConfigurationError as e:
        why = e
    s.start("actor", cpu=1, mem=1)
    print(s.run_id, s.placement.driver.pid, why, flush=True)
    time.sleep(600)
"""


@pytest.fixture(autouse=True)
def no_cluster_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of Ray is set, and none is found, as on a machine where it was just installed."""
    only_below(tmp_path, monkeypatch)


def only_below(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Ray looks for a cluster of this host in a folder."""
    for name in [name for name in os.environ if name.startswith("RAY_")]:
        patch.delenv(name)
    patch.setenv("RAY_TMPDIR", str(folder))


def noted(folder: Path, address: str) -> Path:
    """Ray's note of what runs on this host, which lies where others may write one too."""
    note = folder / "ray" / "ray_current_cluster"
    note.parent.mkdir()
    note.write_text(address)
    return note


@pytest.fixture(scope="module")
def s(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayScheduler]:
    """A run where the cluster is dead that Ray's note names, for the tests that look at it and the one that ends it."""
    folder = tmp_path_factory.mktemp("own")
    noted(folder, DEAD)
    options: dict[str, Any] = {"experiment": "own", "trial": "t", "fileroot": folder, "preload": [], "quiet": True}
    with pytest.MonkeyPatch.context() as patch:
        only_below(folder, patch)
        with RayScheduler(init={"num_gpus": 2}, **options) as scheduler:
            scheduler.start("actor", replicas=2, gpu=1, mem=1).create_engine(sample_engines.Echo)
            yield scheduler


def test_a_cluster_that_is_dead_is_not_joined(s: RayScheduler) -> None:
    """The run has one of its own instead, whose devices are those that Ray was asked for, and needs no CPUs of it."""
    assert str(placement_of(s).address) != DEAD
    assert s.n_gpus_per_node == 2
    seen = [s.call_engine(f"actor/{i}", "environment", None, "CUDA_VISIBLE_DEVICES") for i in (0, 1)]
    assert [each["CUDA_VISIBLE_DEVICES"] for each in seen] == ["0", "1"]


def test_what_can_never_fit_is_refused_at_once(s: RayScheduler) -> None:
    """With the option, and what the largest node has."""
    with pytest.raises(WorkerConfigurationError, match=r"big/0 asks for 2000 CPU .* has 1024 CPU; .* cpu="):
        s.start("big", cpu=2000)


@pytest.mark.parametrize("owner", [os.getuid(), 65534], ids=["mine", "of-another-user"])
def test_a_cluster_of_another_user_is_not_taken_for_ours(
    owner: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who listens at the address of another user's note would get the run's token."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = f"127.0.0.1:{listening.getsockname()[1]}"
        note = noted(tmp_path, address)
        os.chown(note, owner, -1)
        monkeypatch.setattr(ray_internals, "address_file", lambda: str(note))
        assert driver._running_here() == (address if owner == os.getuid() else None)


def test_it_asks_for_a_token_that_the_user_alone_can_read(s: RayScheduler) -> None:
    """A run's own cluster refuses strangers, and its folder is private."""
    folder = folder_of(s.run_id)
    assert (folder.stat().st_mode & 0o777, (folder / "token").stat().st_mode & 0o777) == (0o700, 0o600)
    stranger = subprocess.run(
        [sys.executable, "-c", STRANGER, str(placement_of(s).address)], capture_output=True, text=True, timeout=120
    )
    assert stranger.returncode != 0 and "AuthenticationError" in stranger.stderr


def test_one_whose_driver_was_killed_ends_with_the_run(s: RayScheduler) -> None:
    """Closing ends the cluster though its driver is dead, and removes its folder."""
    assert processes(s.run_id) and folder_of(s.run_id).exists()
    os.kill(placement_of(s).driver.pid, signal.SIGKILL)
    s.close()
    assert not processes(s.run_id) and not folder_of(s.run_id).exists()


def test_stop_ends_what_a_killed_controller_and_its_killed_driver_have_left(tmp_path: Path) -> None:
    """Nobody is there any more to end Ray's own processes and to remove the cluster's folder, a token in it.

    Before, devices of a kind that the cluster lacks were refused at once.
    """
    (tmp_path / "controller.py").write_text(CONTROLLER)
    command = [sys.executable, str(tmp_path / "controller.py"), str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | WITH_SOURCE) as controller:
        assert controller.stdout is not None
        run_id, driver, refused = controller.stdout.readline().split(maxsplit=2)
        os.kill(int(driver), signal.SIGKILL)
        controller.kill()
    assert "refused/0 asks for 1 NPUs, and no node of the cluster has any" in refused
    assert processes(run_id) and folder_of(run_id).exists()
    stop = [sys.executable, "-m", "rolecall.cli", "stop", "--run", "own/t", "--fileroot", str(tmp_path), "--yes"]
    subprocess.run(stop, check=True, timeout=60, env=os.environ | WITH_SOURCE)
    assert not processes(run_id) and not folder_of(run_id).exists()
