"""HttpRequest is a request over HTTP, with the same interface as one over frames.

Streams are answered as lines of JSON (`application/x-ndjson`): `{"item": ...}` for each item, then `{"result": null}`,
or `{"error": ...}` when the stream failed. An error before the first item is a response with an error status.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from typing import Any

from rolecall.errors import CallCancelledError, InternalError, RolecallError
from rolecall.protocol.worker_methods import HttpRoute, WorkerMethod
from rolecall.transport.codec import Received, encode
from rolecall.transport.codec.exceptions import full_name, message_of
from rolecall.transport.http import Request, Response
from rolecall.worker import http_forms

WINDOW = 16  # items of a stream that a slow client has not taken yet


class HttpRequest:
    """One request over HTTP. `response()` waits for its answer. A client that disconnects cancels it.

    Raises:
        ProtocolError, DecodeError: It is malformed.
    """

    def __init__(self, worker_id: str, method: WorkerMethod, route: HttpRoute, request: Request) -> None:
        self._worker_id, self._route, self._request = worker_id, route, request
        self.method = method.name
        self.meta, self._arguments, self.streaming = http_forms.read(method, route, request)
        self._loop = asyncio.get_running_loop()
        self._response: asyncio.Future[Response] = self._loop.create_future()
        if self.streaming:
            self._lines: asyncio.Queue[bytes | None] = asyncio.Queue()
            self._window = asyncio.Semaphore(WINDOW)
            request.disconnect.add_callback(self._window.release)  # wakes a stream that waits for the client

    @property
    def cancelled(self) -> bool:
        return self._request.disconnect.happened

    async def response(self) -> Response:
        """The response; of a stream its head, the items follow in `chunks`."""
        return await self._response

    def args(self) -> Any:
        """The engine's arguments where the method takes any, else the fields of the request."""
        return self.meta if self._arguments is None else self._arguments

    def received(self) -> Received:
        return Received(*encode(self.args()))

    def on_cancel(self, fn: Callable[[], object]) -> None:
        self._request.disconnect.add_callback(fn)

    def finish(self, value: Any, *, stable: bool = False) -> None:
        """Answers with a value, written in this thread.

        Raises:
            EncodeError: It cannot be written as JSON. The request is not answered yet.
            CallCancelledError: The client has disconnected and cannot receive the handles in the value.
        """
        if self.streaming or self.meta.get("tensors") == "remote":
            self._check_connected()
        if self.streaming:
            self._soon(self._end_stream, http_forms.json_bytes({"result": value}))
        else:
            self._soon(self._answer_with, http_forms.answer(self._route, self._request, value, self._worker_id))

    def fail(self, exc: BaseException) -> None:
        """Answers with an error. One that is not a RolecallError becomes an InternalError."""
        error = exc
        if not isinstance(error, RolecallError):
            error = InternalError(self._worker_id, self.method, full_name(type(exc)), message_of(exc))
        if self.streaming:
            self._soon(self._fail_stream, error)
        else:
            self._soon(self._answer_with, http_forms.failure(self._route, error))

    async def emit(self, item: Any) -> None:
        """Sends one item of the stream; waits while the client is behind.

        Raises:
            CallCancelledError: The client has disconnected.
            EncodeError: The item cannot be written as JSON; the stream may go on.
        """
        await self._push(http_forms.json_bytes({"item": item}, "item"))

    def emit_blocking(self, item: Any) -> None:
        """As `emit`, for a thread."""
        line = http_forms.json_bytes({"item": item}, "item")
        asyncio.run_coroutine_threadsafe(self._push(line), self._loop).result()

    async def _push(self, line: bytes) -> None:
        self._check_connected()
        await self._window.acquire()
        self._check_connected()
        self._begin_stream()
        self._lines.put_nowait(line + b"\n")

    def _check_connected(self) -> None:
        if self.cancelled:
            raise CallCancelledError(self._worker_id, self.method)

    def _soon(self, fn: Callable[..., object], value: object) -> None:
        with suppress(RuntimeError):  # the loop is closed, and with it every connection
            self._loop.call_soon_threadsafe(fn, value)

    # On the loop's thread

    def _answer_with(self, response: Response) -> None:
        if not self._response.done():
            self._response.set_result(response)

    def _begin_stream(self) -> None:
        self._answer_with(Response(200, {"content-type": "application/x-ndjson"}, chunks=self._chunks()))

    def _end_stream(self, line: bytes) -> None:
        self._begin_stream()
        self._lines.put_nowait(line + b"\n")
        self._lines.put_nowait(None)

    def _fail_stream(self, error: RolecallError) -> None:
        if self._response.done():
            self._end_stream(http_forms.json_bytes(http_forms.error_facts(error)))
        else:
            self._answer_with(http_forms.failure(self._route, error))

    async def _chunks(self) -> AsyncGenerator[bytes, None]:
        while (line := await self._lines.get()) is not None:
            yield line
            self._window.release()
