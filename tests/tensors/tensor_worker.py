"""A worker reduced to its tensors: a process with a store, a server, and a few methods to move tensors about.

python -m tests.tensors.tensor_worker <name> <socket> <backend>
"""

from __future__ import annotations

import gc
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from rolecall.tensors import functions
from rolecall.tensors.backends.shm import ShmBackend
from rolecall.tensors.backends.wire import WireBackend
from rolecall.tensors.connections import Connections
from rolecall.tensors.fetch import Cache, Fetcher
from rolecall.tensors.service import DataService
from rolecall.tensors.shard import binding
from rolecall.tensors.store import Store
from rolecall.transport.handshake import Hello
from rolecall.transport.loop import IOThread
from rolecall.transport.peer import Incoming, Peer
from rolecall.transport.server import Server
from tests.tensors.open_files import open_descriptors

TOKEN = "0123456789abcdef" * 4


class Worker:
    """Answers `data.*`, and runs the methods below on a thread."""

    def __init__(self, service: DataService) -> None:
        self.service = service
        self.thread = ThreadPoolExecutor(1)
        self.data = ThreadPoolExecutor(2)
        self.kept: list[Any] = []

    def dispatch(self, incoming: Incoming) -> None:
        if incoming.method.startswith("data."):
            self.data.submit(self._answer, incoming)
        else:
            self.thread.submit(self._call, incoming)

    def _answer(self, incoming: Incoming) -> None:
        try:
            incoming.finish(self.service.answer(incoming.method, incoming.args()), stable=True)
        except BaseException as e:
            incoming.fail(e)

    def _call(self, incoming: Incoming) -> None:
        try:
            incoming.finish(getattr(self, incoming.method)(functions.localize(incoming.args())))
        except BaseException as e:
            incoming.fail(e)

    def make(self, spec: dict[str, Any]) -> Any:
        """A batch of `count` tensors of that shape and dtype, left here."""
        values = [
            torch.full(spec["shape"], i, dtype=spec.get("dtype", torch.float32)) for i in range(spec.get("count", 1))
        ]
        return functions.remotize(values)

    def leave(self, value: Any) -> Any:
        return functions.remotize(value)

    def give(self, value: Any) -> Any:
        """The same back, whole."""
        return value

    def total(self, value: Any) -> float:
        return float(sum(t.double().sum() for t in value))

    def spoil(self, value: Any) -> float:
        for tensor in value:
            tensor.zero_()
        return self.total(value)

    def keep(self, value: Any) -> None:
        self.kept.append(value)

    def drop(self, _: Any) -> None:
        self.kept.clear()

    def metrics(self, _: Any) -> dict[str, Any]:
        gc.collect()
        return {**self.service.metrics(), "fds": open_descriptors(), "threads": threading.active_count()}


def main(name: str, path: str, backend: str) -> None:
    """Serves until standard input ends."""
    torch.set_num_threads(1)
    io = IOThread()
    connections = Connections(TOKEN, loop=io.loop, hello=Hello(name=name))
    wire, shm = WireBackend(), ShmBackend()
    store = Store(name, [f"unix:{path}"], {"shm": shm, "wire": wire} if backend == "shm" else {"wire": wire})
    fetcher = Fetcher(connections, Cache(64 << 20), {"shm": shm} if backend == "shm" else {}, store)
    service = DataService(store, fetcher)
    binding.set(service)
    worker = Worker(service)
    peers: dict[str, Peer] = {}

    def on_peer(hello: Any) -> Peer:
        return peers.setdefault(hello.session, Peer(hello.name, loop=io.loop, handler=worker))

    async def listen() -> Server:
        server = Server(TOKEN, loop=io.loop, on_peer=on_peer)
        server.listen_unix(path)
        return server

    io.run(listen())
    print("ready", flush=True)
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
