"""What Ray and its users can do to a run: typed errors in bounded time, and nothing left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rolecall import RayScheduler
from rolecall.errors import WorkerConfigurationError, WorkerCreationError, WorkerFailedError
from rolecall.scheduler.roles import Role
from tests.clusters.ray_census import Census
from tests.clusters.ray_nodes import RayCluster
from tests.placement.ray.ray_engines import Inside
from tests.support import sample_engines
from tests.support.ray_cluster import HEADLESS_S
from tests.support.waiting import wait_for
from tests.support.worker_processes import of_worker

KNOWN_WITHIN_S = 15.0
END_WITHIN_S = 45.0
OUTSIDE = Path(__file__).with_name("outside.py")


@pytest.fixture
def two(s: RayScheduler) -> Role:
    return on_both_nodes(s)


def on_both_nodes(s: RayScheduler) -> Role:
    role = s.start("rollout", replicas=2, gpu=4, cpu=1, ray_placement_strategy="separate")
    role.create_engine(Inside)
    return role


def outside(cluster: RayCluster, what: str, name: str) -> None:
    env = os.environ | cluster.exports
    subprocess.run([sys.executable, OUTSIDE, what, name], env=env, check=True, timeout=60)


def actor(census: Census, name: str) -> dict[str, Any]:
    (found,) = [actor for actor in census.take()["actors"] if actor["Name"] == name]
    return found


def fails(role: Role, index: int, strike: Callable[[], object]) -> WorkerFailedError:
    """What a pending call of a worker says when something strikes it; soon enough, and the other worker lives."""
    pending = role[index].submit("wait")
    others = role[1 - index].call("pid")
    begun = time.monotonic()
    strike()
    with pytest.raises(WorkerFailedError) as caught:
        pending.result()
    assert time.monotonic() - begun < KNOWN_WITHIN_S
    assert role[1 - index].call("pid") == others
    return caught.value


def test_an_actor_that_somebody_kills_fails_its_worker_in_rays_words(
    two: Role, s: RayScheduler, cluster: RayCluster
) -> None:
    """`ray.kill` of a guard's actor is the reason in the error."""
    error = fails(two, 0, lambda: outside(cluster, "kill-actor", f"rolecall/{s.run_id}/rollout/0"))
    assert "killed by `ray.kill`" in error.reason


def test_what_an_actor_had_below_it_is_cleaned_up_when_ray_ends_it(s: RayScheduler, cluster: RayCluster) -> None:
    """Ray kills an actor's children with it; a daemon that has left session and parents is found all the same."""
    role = s.start("actor", cpu=1)
    role.create_engine(sample_engines.Parent)
    wait_for(lambda: len(of_worker(s.run_id, "actor/0")) == 4, 10, "worker, child, session child and daemon")
    outside(cluster, "kill-actor", f"rolecall/{s.run_id}/actor/0")
    wait_for(lambda: not of_worker(s.run_id, "actor/0"), KNOWN_WITHIN_S, "the end of all of them")


def test_an_actor_whose_process_is_killed_takes_its_guard_and_worker_along(
    two: Role, s: RayScheduler, census: Census
) -> None:
    """The death of an actor's process is the reason in the error."""
    pid = actor(census, f"rolecall/{s.run_id}/rollout/0")["Pid"]
    error = fails(two, 0, lambda: os.kill(pid, signal.SIGKILL))
    assert "worker process has died" in error.reason


def test_a_placement_group_that_is_removed_under_us(two: Role, s: RayScheduler, cluster: RayCluster) -> None:
    """The removal of a placement group is the reason in the error, with the group's name."""
    name = f"rolecall/{s.run_id}/rollout/1"
    error = fails(two, 1, lambda: outside(cluster, "remove-group", name))
    assert f"its placement group {name} was removed" in error.reason


def test_a_worker_that_somebody_kills_is_no_fault_of_rays(two: Role) -> None:
    """A killed worker is reported by its signal, without Ray as a reason."""
    pid = two[0].call("pid")
    error = fails(two, 0, lambda: os.kill(pid, signal.SIGKILL))
    assert error.signal == signal.SIGKILL
    assert "Ray" not in error.reason


def test_a_driver_that_is_killed_ends_what_it_had_placed(make: Callable[..., RayScheduler], census: Census) -> None:
    """Ray ends the actors of a lost driver; calls fail with the reason, and so do starts and nothing else."""
    before = {job["JobID"] for job in census.take()["jobs"]}
    s = make()
    two = on_both_nodes(s)
    pending = two.submit("wait")
    (job,) = [job for job in census.take()["jobs"] if job["JobID"] not in before]
    begun = time.monotonic()
    os.kill(job["DriverPid"], signal.SIGKILL)
    for call in pending:
        with pytest.raises(WorkerFailedError, match=r"connection to Ray is gone|driver"):
            call.result()
    assert time.monotonic() - begun < KNOWN_WITHIN_S
    with pytest.raises(WorkerCreationError, match="connection to Ray is gone"):
        s.start("again", cpu=1)


def test_a_controller_that_is_killed_leaves_nothing(cluster: RayCluster, census: Census, tmp_path: Path) -> None:
    """Actors and placement groups of a killed controller are gone when the test ends."""
    program = (
        "import sys, rolecall; s = rolecall.scheduler('ray', fileroot=sys.argv[1], preload=[], quiet=True)\n"
        "s.start('actor', replicas=2, cpu=1, ray_placement_strategy='separate')\n"
        "print('ready', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    env = os.environ | cluster.exports
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env) as controller:
        assert controller.stdout is not None
        assert controller.stdout.readline() == b"ready\n"
        assert len(census.take()["actors"]) == 2
        controller.kill()


def test_no_cluster_at_the_address(make: Callable[..., RayScheduler]) -> None:
    """The error names the address and asks whether a cluster is running."""
    with pytest.raises(WorkerConfigurationError, match=r"\(127.0.0.1:1\) cannot be joined: .*is it running"):
        make(address="127.0.0.1:1")


def test_a_head_that_is_lost(make: Callable[..., RayScheduler], guarded: RayCluster) -> None:
    """Workers serve until Ray's nodes give up, then fail; nothing can be started; the end is bounded."""
    s = make(on=guarded)
    role = s.start("actor", replicas=2, cpu=1)
    role.create_engine(Inside)
    pending = role[0].submit("wait")
    begun = time.monotonic()
    guarded.kill("gcs_server")
    assert role[1].call("pid")
    with pytest.raises(WorkerFailedError) as caught:
        pending.result()
    assert time.monotonic() - begun < HEADLESS_S + KNOWN_WITHIN_S
    assert "Ray" in caught.value.reason
    begun = time.monotonic()
    with pytest.raises(WorkerCreationError, match=r"Ray does not answer|connection to Ray is gone"):
        s.start("more", cpu=1)
    s.close()
    assert time.monotonic() - begun < END_WITHIN_S
    assert not [pid for pid in guarded.pids() if b"ROLECALL_RUN=" in Path(f"/proc/{pid}/environ").read_bytes()]
