"""A worker that is asked over frames and over HTTP."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from rolecall import LocalScheduler
from rolecall.transport.loop import IOThread
from tests.worker.callers import Caller, FramesCaller
from tests.worker.rig import Rig


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    folder = tmp_path_factory.mktemp("run")
    with LocalScheduler(experiment="worker", trial="t", fileroot=folder, preload=[]) as scheduler, IOThread() as io:
        scheduler.start("actor", replicas=2)
        state = json.loads((Path(scheduler.run_dir) / "state.json").read_text())
        yield Rig(scheduler, Path(state["runtime_dir"]), io)


@pytest.fixture(params=["frames", "http"])
def ask(request: pytest.FixtureRequest, rig: Rig) -> Iterator[Caller]:
    """Who asks `actor/0`."""
    if request.param == "http":
        yield rig.http()
        return
    with rig.client() as client:
        yield FramesCaller(client)


@pytest.fixture
def engine(request: pytest.FixtureRequest) -> str:
    """A name for an engine that is this test's alone."""
    return str(request.node.name)
