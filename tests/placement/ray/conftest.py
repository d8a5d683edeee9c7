"""Schedulers on a real Ray cluster for the tests here."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from rolecall import RayScheduler
from tests.clusters.ray_census import Census
from tests.clusters.ray_nodes import RayCluster, auth, started
from tests.support.ray_cluster import HEADLESS_S, SharedRay


@pytest.fixture
def cluster(ray_cluster: SharedRay) -> RayCluster:
    return ray_cluster.nodes


@pytest.fixture
def census(ray_cluster: SharedRay) -> Census:
    return ray_cluster.census


def open_on(
    cluster: RayCluster, patch: pytest.MonkeyPatch, settings: Mapping[str, str], **options: Any
) -> RayScheduler:
    """A scheduler on a cluster, with Ray's `settings` and no others in the environment."""
    for name in [name for name in os.environ if name.startswith("RAY_")]:
        patch.delenv(name)
    for name, value in {**auth(cluster), **settings}.items():
        patch.setenv(name, value)
    known = {"experiment": "ray", "preload": [], "quiet": True, "queue_timeout": 60.0}
    return RayScheduler(**{"address": cluster.exports["RAY_ADDRESS"], **known, **options})


@pytest.fixture
def make(cluster: RayCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., RayScheduler]]:
    """Makes schedulers on the cluster, or `on` another, with Ray's `settings`; what a test leaves open is closed."""
    made: list[RayScheduler] = []

    def build(**options: Any) -> RayScheduler:
        on, settings = options.pop("on", cluster), options.pop("settings", {})
        made.append(open_on(on, monkeypatch, settings, **{"fileroot": tmp_path, **options}))
        return made[-1]

    yield build
    for scheduler in made:
        scheduler.close()


@pytest.fixture(scope="session")
def guarded() -> Iterator[RayCluster]:
    """One that asks for a token. Its nodes do not last long without a head, which the last test of it ends."""
    with started(1, token=True, settings={"RAY_gcs_rpc_server_reconnect_timeout_s": f"{HEADLESS_S:g}"}) as found:
        yield found


@pytest.fixture(scope="module")
def lasting(ray_cluster: SharedRay, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayScheduler]:
    options = {"fileroot": tmp_path_factory.mktemp("lasting"), "trial": "lasting"}
    with pytest.MonkeyPatch.context() as patch, open_on(ray_cluster.nodes, patch, {}, **options) as scheduler:
        yield scheduler


@pytest.fixture
def s(lasting: RayScheduler) -> Iterator[RayScheduler]:
    """One scheduler for all tests of a file that need none of their own; no role is left in it."""
    yield lasting
    lasting.delete_workers()
