"""The guard's own server: plain HTTP for `curl` and frames for the command line, on a Unix socket."""

import asyncio
from functools import partial

from rolecall.errors import PortAllocationError, RolecallError, WorkerConfigurationError, WorkerNotFoundError
from rolecall.guard.metrics import METRICS
from rolecall.guard.requests import SocketRequests
from rolecall.guard.supervisor import Supervisor
from rolecall.protocol.guard_config import GuardConfig
from rolecall.transport.http.messages import HttpError, Request, Response, json_response
from rolecall.transport.http.metrics import metrics_response
from rolecall.transport.http.router import Routes
from rolecall.transport.peer import Peer
from rolecall.transport.server import Hello, Server

_STATUS = {WorkerNotFoundError: 404, WorkerConfigurationError: 400, PortAllocationError: 409}


def guard_server(supervisor: Supervisor, config: GuardConfig, loop: asyncio.AbstractEventLoop) -> Server:
    """A server that answers on `<runtime_dir>/<guard_id>.sock` once it listens there."""
    requests = SocketRequests(supervisor)

    def on_peer(hello: Hello) -> Peer:
        # A command connects once and does not dial again.
        peer = Peer("command line", loop=loop, handler=requests, on_detached=lambda error: peer.close())
        return peer

    async def health(request: Request) -> Response:
        known = {"guard_id": config.guard_id, "run_id": config.run_id, "workers": len(supervisor.table)}
        return json_response({"status": "ok", **known})

    async def metrics(request: Request) -> Response:
        labels = {"guard": config.guard_id}
        return metrics_response(request, "rolecall_guard", labels, supervisor.metrics(), METRICS)

    async def answer(method: str, request: Request) -> Response:
        try:
            return json_response(await requests.call(method, request.json()))
        except RolecallError as error:
            raise HttpError(_STATUS.get(type(error), 500), str(error)) from error

    routes = Routes()
    routes.add("GET", "/health", health)
    routes.add("GET", "/metrics", metrics)
    routes.add("GET", "/workers", partial(answer, "table"))
    for method in ("stacks", "kill", "alloc_ports", "fork", "kill_forked_worker"):
        routes.add("POST", f"/{method}", partial(answer, method))
    return Server(config.token, loop=loop, on_peer=on_peer, http=routes)
