"""A run whose workers are asked over frames and over HTTP."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rolecall import LocalScheduler
from rolecall.transport.client import Client
from rolecall.transport.loop import IOThread
from rolecall.transport.peer import Peer
from tests.worker.callers import HttpCaller


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
        return Client(Peer(worker_id, loop=self.io.loop), [f"unix:{socket}"], self.token)
