"""Requests and responses of HTTP as values, and the error that a route raises to answer with a status."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

JSON = "application/json"
WINDOW = 256 << 10  # bytes of a body that a slow client has not taken yet, and at most one part more
SMALL = 16 << 10  # what a smaller part counts


class Disconnect:
    """Tells a route that the client has closed the connection. All but `happened` on the loop's thread.

    A client that closes only its sending side counts as disconnected; the answer is sent all the same.

    Args:
        check: Returns whether the client has closed the connection by now.
    """

    def __init__(self, check: Callable[[], bool] = lambda: False) -> None:
        self._check = check
        self._happened = False
        self._callbacks: list[Callable[[], object]] = []

    @property
    def happened(self) -> bool:
        """Whether the client has disconnected, also before the callbacks were run. Any thread."""
        return self._happened or self._check()

    def add_callback(self, fn: Callable[[], object]) -> None:
        """Calls `fn` when the client disconnects; at once when it already has."""
        if self._happened:
            fn()
        else:
            self._callbacks.append(fn)

    def notify(self) -> None:
        """Runs the callbacks. May be called twice."""
        self._happened = True
        callbacks, self._callbacks = self._callbacks, []
        for fn in callbacks:
            fn()


@dataclass(frozen=True)
class Request:
    """One request. Header names are in lower case; of repeated headers the last counts; the run's token is removed.

    Attributes:
        target: Path and query as they were sent.
        raw_headers: All headers, as they were sent.
    """

    method: str
    path: str
    query: dict[str, str] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    target: bytes = b""
    raw_headers: Sequence[tuple[bytes, bytes]] = ()
    body: bytes = b""
    params: dict[str, str] = field(default_factory=dict)
    disconnect: Disconnect = field(default_factory=Disconnect, compare=False)

    def json(self) -> Any:
        """The body as JSON.

        Raises:
            HttpError: It is not (400).
        """
        try:
            return json.loads(self.body or b"null")
        except (ValueError, RecursionError) as e:
            raise HttpError(400, f"the body is not JSON: {e}") from e


@dataclass(frozen=True)
class Response:
    """One response; see also `json_response`.

    Attributes:
        raw_headers: Further headers, repeated ones too.
        chunks: The parts of a streamed body, instead of `body`.
    """

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    raw_headers: Sequence[tuple[bytes, bytes]] = ()
    chunks: AsyncGenerator[bytes, None] | None = None

    def json(self) -> Any:
        return json.loads(self.body)


class Parts:
    """The parts of a streamed body on their way to a client, a few of them ahead of it. On the loop's thread."""

    def __init__(self, disconnect: Disconnect) -> None:
        self._parts: asyncio.Queue[bytes | OSError | None] = asyncio.Queue()
        self._ahead, self._room, self._disconnect = 0, asyncio.Event(), disconnect
        disconnect.add_callback(self._room.set)  # wakes who waits for the client

    async def put(self, part: bytes) -> None:
        """Adds a part; waits while the client is behind.

        Raises:
            ConnectionResetError: The client has disconnected.
        """
        while self._ahead >= WINDOW and not self._disconnect.happened:
            self._room.clear()
            await self._room.wait()
        if self._disconnect.happened:
            raise ConnectionResetError("the client has closed the connection")
        self._ahead += max(len(part), SMALL)
        self._parts.put_nowait(part)

    def end(self, last: bytes | OSError | None = None) -> None:
        """Ends the body, after a last part, or breaks it off with an error."""
        self._parts.put_nowait(last)
        self._parts.put_nowait(None)

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """The body, for a `Response`."""
        while (part := await self._parts.get()) is not None:
            if isinstance(part, OSError):
                raise part
            yield part
            self._ahead -= max(len(part), SMALL)
            self._room.set()


class HttpError(Exception):
    """Raised in a route to answer with `status` and the JSON object `{"error": message, **facts}`."""

    def __init__(self, status: int, message: str, **facts: Any) -> None:
        self.status, self.message, self.facts = status, message, facts
        super().__init__(f"{status}: {message}")

    def response(self) -> Response:
        """The error as a response."""
        response = json_response({"error": self.message, **self.facts}, self.status)
        if self.status == 401:
            response.headers["www-authenticate"] = "Bearer"
        if self.status == 405:
            response.headers["allow"] = ", ".join(self.facts["allow"])
        return response


def json_response(value: Any, status: int = 200) -> Response:
    """A response with `value` as JSON."""
    return Response(status, {"content-type": JSON}, json.dumps(value).encode() + b"\n")
