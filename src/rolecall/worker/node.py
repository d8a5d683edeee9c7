"""A worker without its process: engines, tensors and listeners. Tests run it in a thread."""

from __future__ import annotations

import asyncio
from functools import partial

from rolecall.errors import EngineImportError, RolecallError, WorkerConfigurationError
from rolecall.protocol.guard import Ports
from rolecall.protocol.worker_methods import METHODS, AllocPorts, HttpRoute, WorkerConfig, WorkerMethod
from rolecall.tensors.backends import Backend
from rolecall.tensors.backends.ray import RayBackend
from rolecall.tensors.backends.shm import ShmBackend
from rolecall.tensors.backends.wire import WireBackend
from rolecall.tensors.connections import Connections
from rolecall.tensors.fetch import Cache, Fetcher
from rolecall.tensors.service import DataService
from rolecall.tensors.store import Store
from rolecall.transport.http.messages import Request, Response
from rolecall.transport.http.router import AsgiRoute, Routes
from rolecall.transport.peer import Peer
from rolecall.transport.server import Hello, PeerRegistry, Server
from rolecall.types import role_and_index
from rolecall.worker.context import CurrentWorker, enter, seed_of
from rolecall.worker.engines import Engines
from rolecall.worker.host import AskGuard, EngineHost
from rolecall.worker.http_request import HttpRequest, failure
from rolecall.worker.loading import load_function
from rolecall.worker.progress import Progress

CACHE_BYTES = 1 << 30


class WorkerNode:
    """Builds and owns the parts of a worker: engines, tensors, the engine host and its server.

    Raises:
        WorkerConfigurationError: There is no such function as `worker_setup=` names.
    """

    def __init__(
        self, config: WorkerConfig, loop: asyncio.AbstractEventLoop, ask_guard: AskGuard, app: AsgiRoute | None = None
    ) -> None:
        self._config, run = config, config.guard
        try:
            if run.setup:
                load_function(run.setup)
        except EngineImportError as e:
            raise WorkerConfigurationError("bad worker_setup=", run.setup, e.reason) from e
        self._owners = Connections(run.token, loop=loop, hello=Hello(name=config.worker_id))
        self._progress = Progress(config.progress or None)
        self._engines = Engines(config.worker_id, self._progress, one_thread=run.one_engine_thread)
        backends: dict[str, Backend] = {"shm": ShmBackend(), "wire": WireBackend()}
        if run.tensor_backend == RayBackend.name:
            backends = {RayBackend.name: RayBackend(), **backends}
        self._port = config.ports[0] if config.ports else 0
        addresses = [f"unix:{config.socket}", f"tcp:{run.ip}:{self._port}"]
        store = Store(config.worker_id, addresses, backends, default=run.tensor_backend)
        self.data = DataService(store, Fetcher(self._owners, Cache(CACHE_BYTES), backends, store))
        worker = _worker(config, loop, ask_guard)
        enter(self.data, worker)
        self._host = EngineHost(self._engines, self.data, ask_guard, loop, worker.seed, run.setup)
        self._peers = PeerRegistry(lambda hello: Peer(hello.name, loop=loop, handler=self._host))
        self._server = Server(run.token, loop=loop, on_peer=self._peers, http=self._routes(app))

    def start(self) -> None:
        """Listens on a Unix path and on a TCP address."""
        self._server.listen_unix(self._config.socket)
        self._server.listen_tcp(self._config.guard.bind, self._port)

    async def close(self) -> None:
        """Closes connections, engine threads and stored tensors. `destroy()` of engines is a request of its own."""
        await self._server.close()
        self._peers.close()
        self._owners.close()
        self._engines.close()
        self.data.store.close()
        self._progress.close()

    def _routes(self, app: AsgiRoute | None) -> Routes:
        """The routes of the table of a worker's methods."""
        routes = Routes(app)
        for method in METHODS.values():
            for route in method.routes:
                routes.add(route.verb, route.path, partial(self._answer, method, route), max_body=route.max_body)
        return routes

    async def _answer(self, method: WorkerMethod, route: HttpRoute, request: Request) -> Response:
        try:
            accepted = HttpRequest(self._host.worker_id, method, route, request)
        except RolecallError as e:
            return failure(route, e)
        self._host.dispatch(accepted)
        return await accepted.response


def _worker(config: WorkerConfig, loop: asyncio.AbstractEventLoop, ask_guard: AskGuard) -> CurrentWorker:
    (role, index), seed = role_and_index(config.worker_id), config.guard.seed

    async def lease(count: int) -> list[int]:
        answer: Ports = await ask_guard(METHODS["alloc_ports"], AllocPorts(count=count))
        return answer.ports

    return CurrentWorker(
        id=config.worker_id,
        role=role,
        index=index,
        replicas=config.replicas,
        host=config.guard.ip,
        ports=tuple(config.ports),
        devices=tuple(config.devices),
        run_dir=config.guard.run_dir,
        seed=None if seed is None else seed_of(seed, role, index),
        target_ports=tuple(config.target_ports),
        _lease=lease,
        _loop=loop,
    )
