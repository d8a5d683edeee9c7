"""What Ray does not answer to ends nevertheless."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.clusters.ray_nodes import RayCluster, started
from tests.support.checkout import SOURCES
from tests.support.waiting import wait_for
from tests.support.worker_processes import processes

pytestmark = pytest.mark.slow("a cluster of its own", seconds=31)

CONTROLLER = """
import sys, time
from rolecall import RayScheduler
if __name__ == "__main__":
    s = RayScheduler(experiment="ray", trial="t", fileroot=sys.argv[1], preload=[], quiet=True)
    s.start("actor", cpu=1, mem=1)
    print(s.run_id, flush=True)
    time.sleep(600)
"""


@pytest.fixture
def own_cluster() -> Iterator[RayCluster]:
    """Others need their head."""
    with started(1) as cluster:
        yield cluster


def test_a_killed_controller_leaves_no_driver_though_the_head_hangs(own_cluster: RayCluster, tmp_path: Path) -> None:
    """Guards and workers end at once, as ever; the driver as soon as it has waited long enough for Ray."""
    script = tmp_path / "controller.py"
    script.write_text(CONTROLLER)
    env = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | own_cluster.exports
    controller = subprocess.Popen(
        [sys.executable, script, tmp_path], env=env | {"PYTHONPATH": str(SOURCES)}, stdout=subprocess.PIPE, text=True
    )
    with controller:
        assert controller.stdout is not None
        run_id = controller.stdout.readline().strip()
        (head,) = [p for p in map(psutil.Process, own_cluster.pids()) if p.name() == "gcs_server"]
        head.send_signal(signal.SIGSTOP)
        controller.kill()
    driver = "rolecall.placement.ray.driver"
    wait_for(lambda: all(driver in command for command in processes(run_id).values()), 15, "end of the guards")
    wait_for(lambda: not processes(run_id), 45, "end of the driver")
