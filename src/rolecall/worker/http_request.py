"""HttpRequest is a request over HTTP, with the same interface as one over frames.

A handle is written as `{"$rtensor": {"dtype": ..., "shape": ..., "shards": [...], "pieces": [...]}}`. Pass it back
unchanged; `GET /data/<shards[i][0]>` returns the bytes. The runtime does not count the handles that HTTP clients hold:
free their shards with `DELETE /data/clear`, else they stay until the worker ends.

Streams are answered as lines of JSON (`application/x-ndjson`): `{"item": ...}` for each item, then `{"result": null}`,
or `{"error": ...}` when the stream failed. An error before the first item is a response with an error status.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

import msgspec

from rolecall import errors
from rolecall.protocol.worker_methods import STATUS, HttpRoute, WorkerMethod
from rolecall.tensors.dtypes import dtype_name, to_bytes
from rolecall.tensors.handle import RTensor, pack_handles, read_handles
from rolecall.transport import codec
from rolecall.transport.codec.exceptions import full_name, message_of
from rolecall.transport.frames import pack
from rolecall.transport.http.messages import JSON, Parts, Request, Response
from rolecall.transport.http.metrics import Metric, counter, gauge, metrics_response

LABELS: Mapping[str, str] = {"store.backends": "backend"}  # the label that holds the name of each member

METRICS: Mapping[str, Metric] = {
    "uptime_s": gauge("Seconds since the worker began to listen."),
    "cpu_s": counter("Seconds of CPU time used, user and system."),
    "rss_bytes": gauge("Resident memory."),
    "open_fds": gauge("Open file descriptors."),
    "threads": gauge("Threads of the process."),
    "calls_begun": counter("Engine calls that began to run."),
    "calls_ended": counter("Engine calls that ended, however."),
    "calls_waiting": gauge("Calls that wait for their engine thread."),
    "store.shards": gauge("Shards stored here."),
    "store.bytes": gauge("Bytes of the shards stored here."),
    "store.put": counter("Shards stored so far."),
    "store.put_bytes": counter("Bytes stored so far."),
    "store.freed": counter("Shards freed so far."),
    "store.freed_bytes": counter("Bytes freed so far."),
    "store.served": counter("Shards read by request so far."),
    "store.served_bytes": counter("Bytes read by request so far."),
    "fetch.fetches": counter("Fetches planned, each of any number of handles."),
    "fetch.own_bytes": counter("Bytes of fetched shards that this worker stores itself."),
    "fetch.cached_bytes": counter("Bytes that came from the cache."),
    "fetch.mapped_bytes": counter("Bytes of fetched shards that were reached without a request to their owner."),
    "fetch.wire_bytes": counter("Bytes that came over connections."),
    "fetch.cache.shards": gauge("Shards of which the cache holds a part."),
    "fetch.cache.bytes": gauge("Bytes in the cache."),
    "fetch.cache.budget": gauge("Bytes that the cache may hold."),
    "fetch.cache.hits": counter("Ranges found in the cache."),
    "fetch.cache.misses": counter("Ranges not found in the cache."),
    "fetch.cache.evicted_bytes": counter("Bytes that the cache gave up for others."),
}


Arguments = tuple[list[Any], dict[str, Any]]
HANDLE = "$rtensor"
_PARTS = ("dtype", "shape", "shards", "pieces")


def read(method: WorkerMethod, route: HttpRoute, request: Request) -> tuple[dict[str, Any], Arguments | None, bool]:
    """The fields of the request struct, the engine's arguments where the method takes any, and whether it streams.

    Raises:
        ProtocolError: It is malformed.
        DecodeError: A handle in it is malformed.
    """
    if route.form == "tensor":
        return {"shard_ids": [request.params["shard_id"]]}, None, False
    if route.form == "upload":
        return {**request.params, **_tensor_headers(method, request), "data": request.body}, None, False
    fields = _fields(method, request.body)
    if method.arguments is None:
        return fields, None, False
    found: list[Any] = []
    for name, kind in (*zip(method.arguments, (list, dict), strict=True), ("stream", bool)):
        value = kind() if name == "stream" and route.form != "call" else fields.pop(name, kind())
        if not isinstance(value, kind):
            raise method.malformed(f"{name!r} is of type {type(value).__name__}, not {kind.__name__}")
        found.append(value)
    args, kwargs, streaming = found
    return fields, (args, kwargs), streaming


def _fields(method: WorkerMethod, body: bytes) -> dict[str, Any]:
    """The members of a body, with handles in the place of what describes them."""
    loads = partial(json.loads, object_hook=_with_handle) if HANDLE.encode() in body else msgspec.json.decode
    try:
        fields = loads(body or b"{}")
    except (msgspec.DecodeError, ValueError, RecursionError) as e:
        raise method.malformed(f"the body is not JSON: {e}") from e
    if not isinstance(fields, dict):
        raise method.malformed("the body is JSON, but not an object")
    return fields


def _tensor_headers(method: WorkerMethod, request: Request) -> dict[str, Any]:
    try:
        shape = msgspec.json.decode(request.headers.get("x-shape", ""), type=list[int])
    except (msgspec.DecodeError, RecursionError) as e:
        raise method.malformed(f"the header x-shape is not a list of integers: {e}") from e
    return {"dtype": request.headers.get("x-dtype", ""), "shape": shape}


def _with_handle(found: dict[str, Any]) -> Any:
    """A JSON object, or the handle that it describes."""
    if found.keys() != {HANDLE}:
        return found
    parts = found[HANDLE]
    if not isinstance(parts, dict):
        raise errors.DecodeError("not a handle", type(parts).__name__)
    dtype, shape, shards, pieces = map(parts.get, _PARTS)
    return read_handles(msgspec.msgpack.encode([shards, [[dtype, shape, pieces]]]))[0]


def json_bytes(value: Any, place: str = "result") -> bytes:
    """A value as JSON, with handles as described above.

    Raises:
        EncodeError: It cannot be written as JSON: a tensor, for instance.
    """
    try:
        return msgspec.json.encode(value, enc_hook=_plain)
    except (TypeError, ValueError, OverflowError, RecursionError) as e:
        hint = f"it cannot be written as JSON: {e}; ask for handles (tensors=remote), or call over frames"
        raise errors.EncodeError(place, type(value).__name__, hint) from e


def _plain(value: Any) -> Any:
    if isinstance(value, RTensor):
        shards, ((dtype, shape, pieces),) = msgspec.msgpack.decode(pack_handles([value]))
        return {HANDLE: dict(zip(_PARTS, (dtype, shape, shards, pieces), strict=True))}
    raise TypeError(f"a value of type {type(value).__name__}")


def answer(route: HttpRoute, request: Request, value: Any, worker_id: str) -> Response:
    """A method's answer as a response.

    Raises:
        EncodeError: The value cannot be written as JSON.
    """
    match route.form:
        case "tensor":
            tensor = value[0]
            shape = json.dumps(list(tensor.shape))
            headers = {"content-type": "application/octet-stream", "x-dtype": dtype_name(tensor), "x-shape": shape}
            return Response(200, headers, to_bytes(tensor))
        case "frame":
            encoded = codec.encode(value)
            frame = b"".join(pack(encoded.header, encoded.buffers))
            return Response(200, {"content-type": "application/x-rolecall-frame"}, frame)
        case "metrics":
            return metrics_response(request, "rolecall_worker", {"worker": worker_id}, value, METRICS, LABELS)
        case "text":
            return Response(200, {"content-type": "text/plain; charset=utf-8"}, str(value).encode())
        case _:
            body = json_bytes({"result": value} if route.form == "call" else value)
            return Response(200, {"content-type": JSON}, body)


def error_facts(error: errors.RolecallError) -> dict[str, Any]:
    """An error as JSON: `error` is its message, `kind` its class."""
    facts: dict[str, Any] = {"error": _text(str(error)), "kind": type(error).__name__}
    match error:
        case errors.EngineNotFoundError():
            pass
        case errors.EngineCallError():
            facts |= {"type": error.remote_type, "traceback": _text(error.traceback)}
        case errors.EngineCreationError():
            facts |= {"traceback": _text(error.traceback)}
        case errors.ShardNotFoundError():
            facts |= {"missing_shard_ids": [_text(shard) for shard in error.shard_ids]}
        case errors.InternalError():
            facts |= {"type": error.error_type}
    return facts


def _text(text: str) -> str:
    """`text` without lone surrogates, which JSON cannot hold."""
    return text.encode("utf-8", "backslashreplace").decode()


def failure(route: HttpRoute, error: errors.RolecallError) -> Response:
    """An error as a response, with the status of its class or of the nearest base that has one."""
    statuses = {**STATUS, **route.statuses}
    status = next(statuses[cls] for cls in type(error).__mro__ if cls in statuses)
    return Response(status, {"content-type": JSON}, json_bytes(error_facts(error)))


class HttpRequest:
    """One request over HTTP. A client that disconnects cancels it.

    Attributes:
        response: The response; of a stream its head, the items follow in `chunks`.

    Raises:
        ProtocolError, DecodeError: It is malformed.
    """

    def __init__(self, worker_id: str, method: WorkerMethod, route: HttpRoute, request: Request) -> None:
        self._worker_id, self._route, self._request = worker_id, route, request
        self.method = method.name
        self.meta, self._arguments, self.streaming = read(method, route, request)
        self._loop = asyncio.get_running_loop()
        self.response: asyncio.Future[Response] = self._loop.create_future()
        if self.streaming:
            self._lines = Parts(request.disconnect)

    @property
    def cancelled(self) -> bool:
        return self._request.disconnect.happened

    def args(self) -> Any:
        """The engine's arguments where the method takes any, else the fields of the request."""
        return self.meta if self._arguments is None else self._arguments

    def received(self) -> codec.Received:
        return codec.Received(*codec.encode(self.args()))

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
            self._soon(self._end_stream, json_bytes({"result": value}))
        else:
            self._soon(self._answer_with, answer(self._route, self._request, value, self._worker_id))

    def fail(self, exc: BaseException) -> None:
        """Answers with an error. One that is not a RolecallError becomes an InternalError."""
        error = exc
        if not isinstance(error, errors.RolecallError):
            error = errors.InternalError(self._worker_id, self.method, full_name(type(exc)), message_of(exc))
        if self.streaming:
            self._soon(self._fail_stream, error)
        else:
            self._soon(self._answer_with, failure(self._route, error))

    async def emit(self, item: Any) -> None:
        """Sends one item of the stream; waits while the client is behind.

        Raises:
            CallCancelledError: The client has disconnected.
            EncodeError: The item cannot be written as JSON; the stream may go on.
        """
        await self._push(json_bytes({"item": item}, "item"))

    def emit_blocking(self, item: Any) -> None:
        """As `emit`, for a thread."""
        line = json_bytes({"item": item}, "item")
        asyncio.run_coroutine_threadsafe(self._push(line), self._loop).result()

    async def _push(self, line: bytes) -> None:
        self._check_connected()
        self._begin_stream()
        try:
            await self._lines.put(line + b"\n")
        except ConnectionResetError as e:
            raise errors.CallCancelledError(self._worker_id, self.method) from e

    def _check_connected(self) -> None:
        if self.cancelled:
            raise errors.CallCancelledError(self._worker_id, self.method)

    def _soon(self, fn: Callable[..., object], value: object) -> None:
        with suppress(RuntimeError):  # the loop is closed, and with it every connection
            self._loop.call_soon_threadsafe(fn, value)

    # On the loop's thread

    def _answer_with(self, response: Response) -> None:
        if not self.response.done():
            self.response.set_result(response)

    def _begin_stream(self) -> None:
        self._answer_with(Response(200, {"content-type": "application/x-ndjson"}, chunks=self._lines.chunks()))

    def _end_stream(self, line: bytes) -> None:
        self._begin_stream()
        self._lines.end(line + b"\n")

    def _fail_stream(self, error: errors.RolecallError) -> None:
        if self.response.done():
            self._end_stream(json_bytes(error_facts(error)))
        else:
            self._answer_with(failure(self._route, error))
