"""The server of a worker, for frames and HTTP, both derived from the table of its methods."""

from __future__ import annotations

import asyncio
from functools import partial

from rolecall.errors import RolecallError
from rolecall.protocol.worker_methods import METHODS, HttpRoute, WorkerMethod
from rolecall.transport.http import AsgiRoute, Request, Response, Routes
from rolecall.transport.peer import Peer
from rolecall.transport.peer_registry import PeerRegistry
from rolecall.transport.server import Hello, Server
from rolecall.worker import http_forms
from rolecall.worker.host import EngineHost
from rolecall.worker.http_request import HttpRequest


class WorkerServer:
    """Passes requests, over frames and HTTP, to one engine host. All methods on the loop's thread.

    Args:
        app: Answers the HTTP requests that are not the worker's own.
    """

    def __init__(
        self, host: EngineHost, token: str, loop: asyncio.AbstractEventLoop, app: AsgiRoute | None = None
    ) -> None:
        self._host, self._loop = host, loop
        self._peers = PeerRegistry(self._new_peer)
        self._server = Server(token, loop=loop, on_peer=self._peers, http=self._routes(app))

    def listen(self, socket: str, bind: str, port: int) -> None:
        """Listens on a Unix path and on a TCP address."""
        self._server.listen_unix(socket)
        self._server.listen_tcp(bind, port)

    async def close(self) -> None:
        """Closes the connections. May be called twice."""
        await self._server.close()
        self._peers.close()

    def _new_peer(self, hello: Hello) -> Peer:
        return Peer(str(hello.info.get("name", "a client")), loop=self._loop, handler=self._host)

    def _routes(self, app: AsgiRoute | None) -> Routes:
        routes = Routes(app)
        for method in METHODS.values():
            for route in method.routes:
                routes.add(route.verb, route.path, partial(self._answer, method, route), max_body=route.max_body)
        return routes

    async def _answer(self, method: WorkerMethod, route: HttpRoute, request: Request) -> Response:
        try:
            accepted = HttpRequest(self._host.worker_id, method, route, request)
        except RolecallError as e:
            return http_forms.failure(route, e)
        self._host.dispatch(accepted)
        return await accepted.response()
