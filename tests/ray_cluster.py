"""The real Ray cluster of a test session: brought up when the first test asks for it, taken down after the last."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from ray_census import Census
from ray_nodes import RayCluster, started

CLEAN_WITHIN_S = 10.0


class SharedRay:
    """The cluster as tests use it, and its head's view of it."""

    def __init__(self, nodes: RayCluster) -> None:
        self.nodes = nodes
        self.census = Census(nodes.exports["RAY_ADDRESS"], nodes.environment())

    @property
    def exports(self) -> dict[str, str]:
        """Variables by which a program finds it."""
        return self.nodes.exports

    def left(self) -> dict[str, Any]:
        """What a run has there: actors, placement groups, jobs, and nodes that it has cost."""
        found = self.census.take()
        mine: dict[str, list[Any]] = {kind: found[kind] for kind in ("actors", "groups", "jobs")}
        mine["processes"] = [pid for pid in self.nodes.pids() if b"ROLECALL_RUN=" in _environ(pid)]
        mine["dead nodes"] = [node for node in found["nodes"] if not node["Alive"]]
        return {kind: things for kind, things in mine.items() if things}

    def check_clean(self) -> None:
        """No actor, placement group or job is there, and no node was lost."""
        deadline = time.monotonic() + CLEAN_WITHIN_S
        while (seen := self.left()) and time.monotonic() < deadline:
            threading.Event().wait(0.05)
        assert not seen, f"left on Ray: {seen}"


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
