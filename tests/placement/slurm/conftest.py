"""A real cluster for the tests that ask for it, which leave it as they found it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rolecall import SlurmScheduler
from tests.support.slurm_cluster import SlurmCluster

Make = Callable[..., SlurmScheduler]


@pytest.fixture
def cluster(slurm_cluster: SlurmCluster) -> SlurmCluster:
    return slurm_cluster


@pytest.fixture
def make(cluster: SlurmCluster, tmp_path: Path) -> Iterator[Make]:
    """Makes schedulers on the cluster, which are closed before the cluster is looked at."""
    made: list[SlurmScheduler] = []

    def build(**options: Any) -> SlurmScheduler:
        facts = {"experiment": "slurm", "trial": f"t{len(made)}", "fileroot": tmp_path / "root", "preload": []}
        made.append(SlurmScheduler(**{**facts, **options}))
        return made[-1]

    yield build
    for scheduler in made:
        scheduler.close()


@pytest.fixture
def s(make: Make) -> SlurmScheduler:
    return make()
