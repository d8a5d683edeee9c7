"""Reads a worker's HTTP requests and writes its HTTP responses, by the form of the route. Pure: no engine, no socket.

A handle is written as `{"$rtensor": {"dtype": ..., "shape": ..., "shards": [...], "pieces": [...]}}`. Pass it back
unchanged; `GET /data/<shards[i][0]>` returns the bytes. The runtime does not count the handles that HTTP clients hold:
free their shards with `DELETE /data/clear`, else they stay until the worker ends.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import msgspec

from rolecall.errors import (
    DecodeError,
    EncodeError,
    EngineCallError,
    EngineCreationError,
    EngineNotFoundError,
    InternalError,
    RolecallError,
    ShardNotFoundError,
)
from rolecall.protocol.worker_methods import STATUS, HttpRoute, WorkerMethod
from rolecall.tensors import raw
from rolecall.tensors.dtypes import dtype_name
from rolecall.tensors.handle import RTensor, pack_handles, read_handles
from rolecall.tensors.tree import MAX_DEPTH
from rolecall.transport import codec
from rolecall.transport.frames import pack
from rolecall.transport.http import JSON, Request, Response
from rolecall.transport.http.metrics import metrics_response
from rolecall.worker.metrics import LABELS, METRICS

HANDLE = "$rtensor"
_PARTS = ("dtype", "shape", "shards", "pieces")


class Body(NamedTuple):
    """The content of a request.

    Attributes:
        fields: The fields of the request struct.
        arguments: The engine's `(args, kwargs)`, where the method takes any.
    """

    fields: dict[str, Any]
    arguments: tuple[list[Any], dict[str, Any]] | None = None
    streaming: bool = False


def read(method: WorkerMethod, route: HttpRoute, request: Request) -> Body:
    """The content of a request.

    Raises:
        ProtocolError: It is malformed.
        DecodeError: A handle in it is malformed.
    """
    if route.form == "tensor":
        return Body({"shard_ids": [request.params["shard_id"]]})
    if route.form == "upload":
        return Body({**request.params, **_tensor_headers(method, request), "data": request.body})
    fields = _fields(method, request.body)
    if method.arguments is None:
        return Body(fields)
    streaming = fields.pop("stream", False) if route.form == "call" else False
    body = _with_arguments(method, method.arguments, fields, streaming)
    return body._replace(arguments=_with_handles(body.arguments)) if HANDLE.encode() in request.body else body


def _with_arguments(method: WorkerMethod, names: tuple[str, str], fields: dict[str, Any], streaming: Any) -> Body:
    """Takes the engine's arguments out of the fields."""
    args, kwargs = fields.pop(names[0], []), fields.pop(names[1], {})
    for name, value, kind in ((names[0], args, list), (names[1], kwargs, dict), ("stream", streaming, bool)):
        if not isinstance(value, kind):
            raise method.malformed(f"{name!r} is of type {type(value).__name__}, not {kind.__name__}")
    return Body(fields, (args, kwargs), streaming)


def _fields(method: WorkerMethod, body: bytes) -> dict[str, Any]:
    try:
        fields = msgspec.json.decode(body or b"{}")
    except (msgspec.DecodeError, RecursionError) as e:
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


def _with_handles(value: Any, depth: int = 0) -> Any:
    """`value` with each written handle replaced by an `RTensor`.

    Raises:
        DecodeError: A handle is malformed, or the value is nested too deep.
    """
    if depth > MAX_DEPTH:
        raise DecodeError(f"arguments nested deeper than {MAX_DEPTH} levels")
    if isinstance(value, list | tuple):
        return [_with_handles(item, depth + 1) for item in value]
    if not isinstance(value, dict):
        return value
    if value.keys() == {HANDLE}:
        return _handle(value[HANDLE])
    return {key: _with_handles(item, depth + 1) for key, item in value.items()}


def _handle(parts: Any) -> RTensor:
    if not isinstance(parts, dict):
        raise DecodeError("not a handle", type(parts).__name__)
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
        raise EncodeError(place, type(value).__name__, hint) from e


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
            return _tensor(value[0])
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


def _tensor(tensor: Any) -> Response:
    shape = json.dumps(list(tensor.shape))
    headers = {"content-type": "application/octet-stream", "x-dtype": dtype_name(tensor), "x-shape": shape}
    return Response(200, headers, raw.to_bytes(tensor))


def error_facts(error: RolecallError) -> dict[str, Any]:
    """An error as JSON: `error` is its message, `kind` its class."""
    facts: dict[str, Any] = {"error": _text(str(error)), "kind": type(error).__name__}
    match error:
        case EngineNotFoundError():
            pass
        case EngineCallError():
            facts |= {"type": error.remote_type, "traceback": _text(error.traceback)}
        case EngineCreationError():
            facts |= {"traceback": _text(error.traceback)}
        case ShardNotFoundError():
            facts |= {"missing_shard_ids": [_text(shard) for shard in error.shard_ids]}
        case InternalError():
            facts |= {"type": error.error_type}
    return facts


def _text(text: str) -> str:
    """`text` without lone surrogates, which JSON cannot hold."""
    return text.encode("utf-8", "backslashreplace").decode()


def failure(route: HttpRoute, error: RolecallError) -> Response:
    """An error as a response, with the status of its class or of the nearest base that has one."""
    statuses = {**STATUS, **route.statuses}
    status = next(statuses[cls] for cls in type(error).__mro__ if cls in statuses)
    return Response(status, {"content-type": JSON}, json_bytes(error_facts(error)))
