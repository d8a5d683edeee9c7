"""What happens to a whole host of a Ray cluster, and to what Ray runs there: the caller knows, and nothing is left."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rolecall import Scheduler
from rolecall.errors import RolecallError, ShardNotFoundError, WorkerFailedError
from tests.support import live, sample_engines
from tests.support.hosts_under_test import OfRay
from tests.support.waiting import wait_for
from tests.support.worker_processes import processes

pytestmark = pytest.mark.slow("a cluster of its own", seconds=28)

OUTSIDE = Path(__file__).parents[1] / "placement" / "ray" / "outside.py"
TOLD_WITHIN_S = 15.0
NODE_LOST_S = 30.0  # Ray takes 20 s to give up what a node held


@pytest.fixture
def hosts(hosts_of_ray: OfRay) -> Iterator[OfRay]:
    """Whole again for the next test."""
    yield hosts_of_ray
    hosts_of_ray.mend()


@pytest.fixture
def s(hosts: OfRay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scheduler]:
    options = {"experiment": "hosts", "trial": "t", "fileroot": tmp_path, "preload": []}
    with hosts.scheduler(monkeypatch, **options) as scheduler:
        yield scheduler
    assert not processes(scheduler.run_id)
    assert hosts.left() == []


def strike(s: Scheduler, hosts: OfRay, blow: Callable[[str], object]) -> WorkerFailedError:
    """What the first of two workers on two hosts says when its host is struck; the other one goes on, and ends."""
    role = s.start("actor", 2, cpu=65, mem=1)
    role.create_engine(sample_engines.Echo)
    here, there = (worker.ip for worker in s.get_workers("actor"))
    pending = role[0].submit("sleep", 3600.0)
    assert folder(s, hosts, here) and folder(s, hosts, there)
    begun = time.monotonic()
    blow(here)
    with pytest.raises(WorkerFailedError) as told:
        pending.result()
    assert time.monotonic() - begun < TOLD_WITHIN_S
    assert role[1].call("greet") == "hello"
    s.delete_workers("actor")
    assert folder(s, hosts, there) == []
    return told.value


def test_what_lay_in_the_store_of_a_host_is_lost_with_it(
    hosts: OfRay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until then another host reads it from Ray; who reads it afterwards is told that it is gone, in bounded time."""
    options = {"experiment": "hosts", "trial": "t", "fileroot": tmp_path, "tensor_backend": "ray"}
    with hosts.scheduler(monkeypatch, **options) as s:
        role = s.start("actor", 2, cpu=65, mem=1)
        role.create_engine(sample_engines.Tensors)
        made = role[0].with_options(tensors="remote").call("make", 1 << 18, 2.0)
        assert [shard.backend for shard in made["x"].shards] == ["ray"]
        assert role[1].call("total", made["x"]) == 2.0 * (1 << 20)
        hosts.crash(s.get_workers("actor")[0].ip)
        begun = time.monotonic()
        with pytest.raises(ShardNotFoundError, match="its owner is gone"):
            role[1].call("total", made["x"])
        with pytest.raises(RolecallError, match="actor/0"):
            made["x"].localize()
        assert time.monotonic() - begun < NODE_LOST_S
    assert hosts.left() == []


def folder(s: Scheduler, hosts: OfRay, address: str) -> list[Path]:
    """What there is of the run in its runtime directory on a host."""
    return sorted((hosts.root(address) / live.runtime_dir(s).relative_to("/")).glob("**"))


def test_a_host_that_crashes(s: Scheduler, hosts: OfRay) -> None:
    """All of its processes are gone at the same moment, and none is left to say so."""
    error = strike(s, hosts, hosts.crash)
    assert "Ray node" in error.reason
    assert "does not answer" in error.reason or "died" in error.reason


def test_a_raylet_that_is_killed_takes_all_along(s: Scheduler, hosts: OfRay) -> None:
    """The loss of a node is the reason in the error, and the node's runtime directory is removed."""
    struck: list[str] = []

    def blow(address: str) -> None:
        struck.append(address)
        hosts.kill_raylet(address)

    assert "Ray node" in strike(s, hosts, blow).reason
    wait_for(lambda: folder(s, hosts, struck[0]) == [], TOLD_WITHIN_S, "end of the run's directory there")


def test_an_actor_that_somebody_kills_on_another_host(s: Scheduler, hosts: OfRay) -> None:
    """The kill is the reason in the error, and the host's runtime directory is removed."""
    struck: list[str] = []

    def blow(address: str) -> None:
        struck.append(address)
        command = [sys.executable, str(OUTSIDE), "kill-actor", f"rolecall/{s.run_id}/actor/0"]
        subprocess.run(command, env=os.environ | hosts.cluster.exports, check=True, timeout=60)

    assert "killed by `ray.kill`" in strike(s, hosts, blow).reason
    wait_for(lambda: folder(s, hosts, struck[0]) == [], TOLD_WITHIN_S, "end of the run's directory there")


CONTROLLER = """
import rolecall, tempfile
from tests.support import sample_engines
if __name__ == "__main__":
    known = {"experiment": "hosts", "trial": "t", "fileroot": tempfile.gettempdir(), "preload": [], "quiet": True}
    with rolecall.scheduler("ray", **known) as s:
        role = s.start("actor", replicas=2, cpu=65, mem=1)
        role.create_engine(sample_engines.Echo)
        listens = s.inspect().controller.addresses[1]
        print(sorted(worker.ip for worker in s.get_workers("actor")), role.call("greet"), listens)
"""


def test_a_controller_on_a_host_that_is_not_the_head_s(hosts: OfRay) -> None:
    """It is one of the nodes, without a word about which; guards here and there call it at its own address."""
    own, other = hosts.cables
    inside = ["nsenter", f"--target={hosts.cluster.first(hosts.name(own))}", "--net", "--mount", "--pid"]
    env = os.environ | hosts.cluster.exports | {"PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run(
        [*inside, sys.executable, "-c", CONTROLLER], env=env, capture_output=True, text=True, timeout=100
    )
    assert done.stdout.startswith(f"{sorted([own, other])} ['hello', 'hello'] tcp:{own}:"), done.stderr
    assert hosts.left() == []
