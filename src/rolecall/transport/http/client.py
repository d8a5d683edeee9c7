"""One GET to a listener, for readiness checks. It keeps no connection."""

from __future__ import annotations

import asyncio
import socket

import h11

from rolecall.transport import address as addresses
from rolecall.transport.http.messages import Response

RECEIVE = 64 << 10


async def http_get(
    address: str, path: str, headers: dict[str, str] | None = None, timeout: float | None = 10.0
) -> Response:
    """Sends one GET to `unix:/path` or `tcp:host:port`.

    Raises:
        OSError: No process listens at the address, or the server closed the connection.
        TimeoutError: No answer within `timeout` seconds.
    """
    loop = asyncio.get_running_loop()
    where = addresses.parse(address)
    async with asyncio.timeout(timeout):
        sock = await addresses.dial(where, loop)
        try:
            return await _get(sock, loop, where.host or "localhost", path, headers or {})
        except h11.RemoteProtocolError as e:
            raise ConnectionError(f"{address} does not speak HTTP: {e}") from e
        finally:
            sock.close()


async def _get(
    sock: socket.socket, loop: asyncio.AbstractEventLoop, host: str, path: str, headers: dict[str, str]
) -> Response:
    http = h11.Connection(h11.CLIENT)
    sent = {"host": host, "connection": "close", **{name.lower(): value for name, value in headers.items()}}
    request = http.send(h11.Request(method="GET", target=path, headers=list(sent.items()))) or b""
    await loop.sock_sendall(sock, request + (http.send(h11.EndOfMessage()) or b""))
    status, answer, body = 0, {}, bytearray()
    while True:
        event = http.next_event()
        if event is h11.NEED_DATA:
            http.receive_data(await loop.sock_recv(sock, RECEIVE))
        elif isinstance(event, h11.Response):
            status = event.status_code
            answer = {name.decode(): value.decode("latin-1") for name, value in event.headers}
        elif isinstance(event, h11.Data):
            body += event.data
        elif isinstance(event, h11.EndOfMessage):
            return Response(status, answer, bytes(body))
        elif isinstance(event, h11.ConnectionClosed):
            raise ConnectionError("the server closed the connection before its response was complete")
