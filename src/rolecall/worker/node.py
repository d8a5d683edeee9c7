"""A worker without its process: engines, store, fetcher and the server in front of them. Tests host it in a thread."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import msgspec

from rolecall.rpc.client import Client
from rolecall.rpc.peer import Peer
from rolecall.rpc.server import Hello, Server
from rolecall.tensors import functions
from rolecall.tensors.fetch import Fetcher
from rolecall.tensors.store import Store
from rolecall.worker.host import EngineHost
from rolecall.worker.progress import Progress
from rolecall.worker.routes import AskGuard, WorkerRoutes
from rolecall.worker.service import WorkerService


class WorkerConfig(msgspec.Struct):
    """What the guard tells a worker over the control channel. `socket` is the Unix path to listen on."""

    worker_id: str
    run_id: str
    token: str
    epoch: int
    socket: str
    ip: str
    bind: str
    port: int
    progress: str = ""
    main_path: str | None = None
    sys_path: list[str] = []

    def __repr__(self) -> str:
        return f"WorkerConfig({self.worker_id}, token=...)"

    @classmethod
    def from_wire(cls, value: dict[str, Any]) -> WorkerConfig:
        return msgspec.convert(value, cls)


class WorkerNode:
    """Everything of a worker, assembled."""

    def __init__(self, config: WorkerConfig, loop: asyncio.AbstractEventLoop, ask_guard: AskGuard) -> None:
        self._config, self._loop = config, loop
        self._clients: dict[tuple[str, ...], Client] = {}
        self._progress = Progress(config.progress or None)
        addresses = [f"unix:{config.socket}", f"tcp:{config.ip}:{config.port}"]
        self.store = Store(config.worker_id, addresses)
        self.fetcher = Fetcher(self._connect, loop=loop, store=self.store)
        functions.bind(self.store, self.fetcher)
        self.service = WorkerService(EngineHost(config.worker_id, self._progress), self.store, self.fetcher, loop)
        self._server = Server(
            config.token,
            loop=loop,
            epoch=config.epoch,
            on_peer=self._new_peer,
            http=WorkerRoutes(self.service, ask_guard).routes(),
        )

    async def start(self) -> dict[str, Any]:
        """Listens; returns what the guard passes on: pid, Unix path, port."""
        await self._server.listen_unix(self._config.socket)
        port = await self._server.listen_tcp(self._config.bind, self._config.port)
        return {"pid": os.getpid(), "socket": self._config.socket, "port": port}

    def close(self) -> None:
        self._server.close()
        for client in self._clients.values():
            client.close()
        self.store.clear()
        self._progress.close()

    def _new_peer(self, hello: Hello) -> Peer:
        return Peer(hello.name, loop=self._loop, handler=self.service, context=self.fetcher)

    def _connect(self, owner: str, addresses: list[str]) -> Peer:
        """The conversation with another worker, kept for the next fetch."""
        key = (owner, *addresses)
        client = self._clients.get(key)
        if client is None:
            hello = {"kind": "worker", "name": self._config.worker_id, "epoch": self._config.epoch}
            client = Client(owner, addresses, self._config.token, loop=self._loop, hello=hello)
            self._clients[key] = client
        return client.peer
