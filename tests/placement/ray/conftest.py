"""Schedulers on a real Ray cluster for the tests here."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rolecall import RayScheduler
from tests.clusters.ray_census import Census
from tests.clusters.ray_nodes import RayCluster, auth
from tests.support.ray_cluster import SharedRay


@pytest.fixture
def cluster(ray_cluster: SharedRay) -> RayCluster:
    return ray_cluster.nodes


@pytest.fixture
def census(ray_cluster: SharedRay) -> Census:
    return ray_cluster.census


@pytest.fixture
def make(cluster: RayCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., RayScheduler]]:
    """Makes schedulers on the cluster, or `on` another, with Ray's `settings`; what a test leaves open is closed."""
    made: list[RayScheduler] = []

    def build(**options: Any) -> RayScheduler:
        on, settings = options.pop("on", cluster), options.pop("settings", {})
        for name in [name for name in os.environ if name.startswith("RAY_")]:
            monkeypatch.delenv(name)
        for name, value in {**auth(on), **settings}.items():
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
