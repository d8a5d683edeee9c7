"""Clusters of hosts, each started once: a test that breaks one mends it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.hosts_under_test import OfRay, OfSlurm, of_ray, of_slurm


@pytest.fixture(scope="session")
def hosts_of_ray() -> Iterator[OfRay]:
    with of_ray() as found:
        yield found


@pytest.fixture(scope="session")
def hosts_of_slurm() -> Iterator[OfSlurm]:
    with of_slurm() as found:
        yield found
