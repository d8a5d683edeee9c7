"""The real Ray cluster of a test session: brought up when the first test asks for it, taken down after the last."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from rolecall import Scheduler
from rolecall.placement.ray.placement import RayPlacement
from tests.clusters.ray_census import Census, census_of
from tests.clusters.ray_nodes import RayCluster, started
from tests.support.waiting import poll

CLEAN_WITHIN_S = 10.0
HEADLESS_S = 5.0  # so long the nodes of some clusters go on without a head; 60 unless they are told otherwise


def placement_of(scheduler: Scheduler) -> RayPlacement:
    """The placement of a scheduler on Ray."""
    assert isinstance(scheduler.placement, RayPlacement)
    return scheduler.placement


class SharedRay:
    """The cluster as tests use it, and its head's view of it."""

    def __init__(self, nodes: RayCluster) -> None:
        self.nodes = nodes
        self.census = Census(nodes.exports["RAY_ADDRESS"], nodes.environment())

    @property
    def exports(self) -> dict[str, str]:
        """Variables by which a program finds it."""
        return self.nodes.exports

    def of_runs(self) -> set[str]:
        """What runs have there, by id: jobs, actors, placement groups, processes."""
        return {_id(thing) for things in left_of(self.census.take(), self.nodes).values() for thing in things}

    def left(self) -> dict[str, list[Any]]:
        """What a run has there, and nodes that it has cost."""
        found = self.census.take()
        return left_of(found, self.nodes) | {"dead nodes": [node for node in found["nodes"] if not node["Alive"]]}

    def check_clean(self, kept: Collection[str]) -> None:
        """Runs have nothing there but what was kept, and no node was lost."""
        check_none(lambda: {kind: [x for x in things if _id(x) not in kept] for kind, things in self.left().items()})


def _id(thing: Any) -> str:
    """Of an actor, a placement group or a job its id; anything else is told by all that is known of it."""
    names = ("ActorID", "placement_group_id", "JobID")
    return next((str(thing[name]) for name in names if isinstance(thing, dict) and name in thing), str(thing))


def left_of(found: Mapping[str, list[Any]], nodes: RayCluster) -> dict[str, list[Any]]:
    """What a census found of runs: actors, placement groups, jobs, objects; and their processes."""
    mine = {kind: found[kind] for kind in ("actors", "groups", "jobs", "objects")}
    return mine | {"processes": [pid for pid in nodes.pids() if b"ROLECALL_RUN=" in _environ(pid)]}


def check_none(look: Callable[[], Mapping[str, Any]]) -> None:
    """Fails when something is still there after a while, of which there are lists by kind."""
    if not poll(lambda: not any(look().values()), CLEAN_WITHIN_S):
        seen = {kind: things for kind, things in look().items() if things}
        assert not seen, f"left on Ray: {seen}"


def check_clean(nodes: RayCluster) -> None:
    """No run has anything on a cluster of a test's own, which may have lost nodes."""
    with census_of(nodes) as census:
        check_none(lambda: left_of(census.take(), nodes))


def _environ(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return b""  # it has ended


def needs_ray() -> None:
    """Without Ray the test is skipped on a developer's machine, and fails in CI."""
    if find_spec("ray") is None and not os.environ.get("CI"):
        pytest.skip("no Ray here: pip install 'rolecall[ray]'")


@contextlib.contextmanager
def running_ray() -> Iterator[SharedRay]:
    """Brings the cluster up and down."""
    needs_ray()
    with started() as nodes:
        cluster = SharedRay(nodes)
        try:
            yield cluster
        finally:
            cluster.census.close()
