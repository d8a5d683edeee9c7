"""A worker that is asked over frames and over HTTP."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from rolecall import LocalScheduler
from rolecall.transport.client import Client
from rolecall.transport.loop import IOThread

from .callers import Caller, FramesCaller, HttpCaller


@dataclass(frozen=True)
class Rig:
    """A run with workers `actor/0` and `actor/1`, and who asks them."""

    scheduler: LocalScheduler
    runtime_dir: Path
    io: IOThread

    @property
    def token(self) -> str:
        return (self.runtime_dir / "token").read_text()

    def socket(self, worker: int = 0) -> str:
        return str(self.runtime_dir / "w" / f"actor-{worker}.sock")

    def http(self, worker: int = 0) -> HttpCaller:
        return HttpCaller(self.socket(worker), self.token)

    def guard(self) -> HttpCaller:
        return HttpCaller(str(self.runtime_dir / "g0.sock"), self.token)

    def client(self, worker: int = 0) -> Client:
        return self.dial(f"actor/{worker}", Path(self.socket(worker)))

    def dial(self, worker_id: str, socket: Path) -> Client:
        return Client(worker_id, [f"unix:{socket}"], self.token, loop=self.io.loop)


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
