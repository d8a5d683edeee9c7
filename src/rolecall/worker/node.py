"""A worker without its process: engines, tensors and the server in front of them. Tests host it in a thread."""

from __future__ import annotations

import asyncio
import os

from rolecall.protocol.worker import Configured, WorkerConfig
from rolecall.tensors.backends.base import Backend
from rolecall.tensors.backends.ray import RayBackend
from rolecall.tensors.backends.shm import ShmBackend
from rolecall.tensors.backends.wire import WireBackend
from rolecall.tensors.cache import Cache
from rolecall.tensors.connections import Connections
from rolecall.tensors.fetch import Fetcher
from rolecall.tensors.service import DataService
from rolecall.tensors.store import Store
from rolecall.transport.peer import Peer
from rolecall.transport.server import Hello, Server
from rolecall.transport.sessions import Sessions
from rolecall.worker.host import EngineHost
from rolecall.worker.progress import Progress
from rolecall.worker.routes import AskGuard, WorkerRoutes
from rolecall.worker.service import WorkerService

CACHE_BYTES = 1 << 30


class WorkerNode:
    """Everything of a worker, assembled."""

    def __init__(self, config: WorkerConfig, loop: asyncio.AbstractEventLoop, ask_guard: AskGuard) -> None:
        self._config, self._loop = config, loop
        hello = {"kind": "worker", "name": config.worker_id}
        self._owners = Connections(config.token, loop=loop, hello=hello)
        self._sessions = Sessions(self._new_peer)
        self._progress = Progress(config.progress or None)
        self._host = EngineHost(config.worker_id, self._progress)
        self.data = self._data_service()
        self.service = WorkerService(self._host, self.data, loop)
        self._server = Server(
            config.token,
            loop=loop,
            on_peer=self._sessions,
            http=WorkerRoutes(self.service, ask_guard).routes(),
        )

    def start(self) -> Configured:
        """Listens, and says where."""
        config = self._config
        self._server.listen_unix(config.socket)
        port = self._server.listen_tcp(config.bind, config.port)
        return Configured(pid=os.getpid(), socket=config.socket, port=port)

    async def close(self) -> None:
        """Ends connections, lanes and memory. Engines are not destroyed; that is asked for before."""
        await self._server.close()
        self._owners.close()
        self._sessions.close()
        self._host.close()
        self.data.store.close()
        self._progress.close()

    def _data_service(self) -> DataService:
        config = self._config
        backends: dict[str, Backend] = {"shm": ShmBackend(), "wire": WireBackend()}
        if config.tensor_backend == RayBackend.name:
            backends = {RayBackend.name: RayBackend(), **backends}
        addresses = [f"unix:{config.socket}", f"tcp:{config.ip}:{config.port}"]
        store = Store(config.worker_id, addresses, backends, default=config.tensor_backend)
        return DataService(store, Fetcher(self._owners, Cache(CACHE_BYTES), backends, store), self._owners)

    def _new_peer(self, hello: Hello) -> Peer:
        return Peer(str(hello.info.get("name", "somebody")), loop=self._loop, handler=self.service)
