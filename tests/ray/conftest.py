"""A real Ray cluster for the tests here, and the proof after each of them that nothing of it is left there."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ray_census import Census
from ray_nodes import RayCluster, auth, started

from rolecall import RayScheduler

GONE_WITHIN_S = 5.0


@pytest.fixture(scope="session")
def cluster() -> Iterator[RayCluster]:
    """Two nodes of 4 GPUs and 4 NPUs. For this process alone: what others hold would not be free."""
    with started() as found:
        yield found


@pytest.fixture(scope="session")
def census(cluster: RayCluster) -> Iterator[Census]:
    asking = Census(cluster.exports["RAY_ADDRESS"], cluster.environment())
    yield asking
    asking.close()


@pytest.fixture(autouse=True)
def nothing_left_on_ray(request: pytest.FixtureRequest) -> Iterator[None]:
    """After every test: no actor, placement group or job on the cluster, and no process that an actor had started."""
    if "cluster" not in request.fixturenames:
        yield
        return
    census, cluster = request.getfixturevalue("census"), request.getfixturevalue("cluster")
    yield
    deadline = time.monotonic() + GONE_WITHIN_S
    while (left := _left(census, cluster)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not left


def _left(census: Census, cluster: RayCluster) -> dict[str, Any]:
    found = census.take()
    mine: dict[str, Any] = {kind: found[kind] for kind in ("actors", "groups", "jobs")}
    mine["processes"] = [pid for pid in cluster.pids() if b"ROLECALL_RUN=" in _environ(pid)]
    return {kind: things for kind, things in mine.items() if things}


def _environ(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return b""


@pytest.fixture
def make(cluster: RayCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., RayScheduler]]:
    """Makes schedulers on the cluster; what a test leaves open is closed after it."""
    made: list[RayScheduler] = []

    def build(**options: Any) -> RayScheduler:
        on = options.pop("on", cluster)
        for name in [name for name in os.environ if name.startswith("RAY_")]:
            monkeypatch.delenv(name)
        for name, value in auth(on).items():
            monkeypatch.setenv(name, value)
        known = {"fileroot": tmp_path, "experiment": "ray", "preload": [], "quiet": True, "queue_timeout": 60.0}
        made.append(RayScheduler(**{"address": on.exports["RAY_ADDRESS"], **known, **options}))
        return made[-1]

    yield build
    for scheduler in made:
        scheduler.close()


@pytest.fixture
def s(make: Callable[..., RayScheduler]) -> RayScheduler:
    return make()
