"""One HTTP request to a program, on a connection of its own."""

from __future__ import annotations

import asyncio
from contextlib import closing

import h11
import msgspec

from rolecall.transport.http.messages import JSON, Response
from rolecall.transport.http.router import MAX_BODY

RECEIVE = 64 << 10
NOT_SERVED = (404, 405, 501)  # statuses of a program that does not serve a route


async def ask(
    host: str, port: int, method: str, path: str, body: bytes = b"", *, status_only: bool = False
) -> Response:
    """Sends a request once and returns the answer; cancelling it closes the connection.

    Args:
        status_only: Return when the status is there, whatever follows it.

    Raises:
        OSError: The connection cannot be made or broke, or what came is no HTTP or has more than `MAX_BODY` bytes.
    """
    reader, writer = await asyncio.open_connection(host, port)
    with closing(writer):
        http = h11.Connection(h11.CLIENT)
        headers = {"host": f"{host}:{port}", "connection": "close", "content-type": JSON, "content-length": len(body)}
        head = h11.Request(method=method, target=path, headers=[(name, str(value)) for name, value in headers.items()])
        writer.write(b"".join(http.send(event) or b"" for event in (head, h11.Data(data=body), h11.EndOfMessage())))
        await writer.drain()
        status, answer = 0, bytearray()
        try:
            while not isinstance(event := http.next_event(), h11.EndOfMessage):
                if event is h11.NEED_DATA:
                    http.receive_data(await reader.read(RECEIVE))
                elif isinstance(event, h11.Response):
                    status = event.status_code
                    if status_only:
                        break
                elif isinstance(event, h11.Data):
                    answer += event.data
                    if len(answer) > MAX_BODY:
                        raise OSError(f"the answer is larger than {MAX_BODY} bytes")
        except h11.RemoteProtocolError as e:
            raise ConnectionError(str(e)) from e
        return Response(status, body=bytes(answer))


class ErrorBody(msgspec.Struct):
    """What a program says of an error, where its body is JSON: `detail` is FastAPI's word for `error`."""

    error: str = ""
    detail: str = ""
    type: str = ""
    traceback: str = ""

    @classmethod
    def of(cls, response: Response) -> ErrorBody:
        """The body of an answer that is an error, or its text."""
        try:
            body = msgspec.json.decode(response.body, type=cls)
        except (msgspec.DecodeError, RecursionError):
            body = cls()
        body.error = body.error or body.detail or response.body[:1000].decode(errors="replace")
        body.type = body.type or f"HTTP {response.status}"
        return body
