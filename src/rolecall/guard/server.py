"""The guard's own server: plain HTTP for `curl` and frames for the command line, on a Unix socket."""

import asyncio
from collections.abc import Awaitable, Callable

from rolecall.errors import PortAllocationError, RolecallError, WorkerConfigurationError, WorkerNotFoundError
from rolecall.guard import runtime
from rolecall.guard.metrics import METRICS
from rolecall.guard.requests import SocketRequests
from rolecall.guard.supervisor import Supervisor
from rolecall.protocol.guard_config import GuardConfig
from rolecall.transport.http import HttpError, Request, Response, Routes, json_response
from rolecall.transport.http.metrics import metrics_response
from rolecall.transport.peer import Peer
from rolecall.transport.server import Hello, Server

_STATUS = {WorkerNotFoundError: 404, WorkerConfigurationError: 400, PortAllocationError: 409}


class GuardServer:
    """Serves `<runtime_dir>/<guard_id>.sock`."""

    def __init__(self, supervisor: Supervisor, config: GuardConfig, loop: asyncio.AbstractEventLoop) -> None:
        self._supervisor, self._config, self._loop = supervisor, config, loop
        self._requests = SocketRequests(supervisor)
        self._server = Server(config.token, loop=loop, on_peer=self._on_peer, http=self._routes())

    def listen(self) -> None:
        self._server.listen_unix(runtime.guard_socket(self._config.runtime_dir, self._config.guard_id))

    async def close(self) -> None:
        await self._server.close()

    def _on_peer(self, hello: Hello) -> Peer:
        peer = Peer(
            "command line",
            loop=self._loop,
            handler=self._requests,
            on_detached=lambda error: peer.close(),  # a command connects once and does not dial again
        )
        return peer

    def _routes(self) -> Routes:
        routes = Routes()
        routes.add("GET", "/health", self._health)
        routes.add("GET", "/metrics", self._metrics)
        routes.add("GET", "/workers", self._route("table"))
        routes.add("POST", "/stacks", self._route("stacks"))
        routes.add("POST", "/kill", self._route("kill"))
        routes.add("POST", "/alloc_ports", self._route("alloc_ports"))
        routes.add("POST", "/fork", self._route("fork"))
        routes.add("POST", "/kill_forked_worker", self._route("kill_forked_worker"))
        return routes

    async def _health(self, request: Request) -> Response:
        config = self._config
        workers = await self._requests.call("table", None)
        return json_response(
            {"status": "ok", "guard_id": config.guard_id, "run_id": config.run_id, "workers": len(workers)}
        )

    async def _metrics(self, request: Request) -> Response:
        labels = {"guard": self._config.guard_id}
        return metrics_response(request, "rolecall_guard", labels, self._supervisor.metrics(), METRICS)

    def _route(self, method: str) -> Callable[[Request], Awaitable[Response]]:
        async def answer(request: Request) -> Response:
            try:
                return json_response(await self._requests.call(method, request.json()))
            except RolecallError as error:
                raise HttpError(_STATUS.get(type(error), 500), str(error)) from error

        return answer
