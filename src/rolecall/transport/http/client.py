"""One GET to a listener, for readiness checks. It keeps no connection."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

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
    http = h11.Connection(h11.CLIENT)
    sent = {"host": where.host or "localhost", "connection": "close"}
    sent |= {name.lower(): value for name, value in (headers or {}).items()}
    request = h11.Request(method="GET", target=path, headers=list(sent.items()))
    answer, body = Response(), bytearray()
    async with asyncio.timeout(timeout):
        with await addresses.dial(where, loop) as sock:
            await loop.sock_sendall(sock, (http.send(request) or b"") + (http.send(h11.EndOfMessage()) or b""))
            while not isinstance(event := _next_event(http, address), h11.EndOfMessage):
                if event is h11.NEED_DATA:
                    http.receive_data(await loop.sock_recv(sock, RECEIVE))
                elif isinstance(event, h11.Response):
                    received = {name.decode(): value.decode("latin-1") for name, value in event.headers}
                    answer = Response(event.status_code, received)
                elif isinstance(event, h11.Data):
                    body += event.data
    return replace(answer, body=bytes(body))


def _next_event(http: h11.Connection, address: str) -> Any:
    try:
        event = http.next_event()
    except h11.RemoteProtocolError as e:
        raise ConnectionError(f"{address} does not speak HTTP: {e}") from e
    if isinstance(event, h11.ConnectionClosed):
        raise ConnectionError("the server closed the connection before its response was complete")
    return event
