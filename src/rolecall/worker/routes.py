"""The worker's HTTP side: the same methods for `curl` and for programs in other languages, in JSON.

What is no JSON (a tensor as a result) is refused with a sentence; tensors are read as raw bytes from `/data/<id>`.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import msgspec

from rolecall.errors import (
    EngineCallError,
    EngineCreationError,
    EngineImportError,
    EngineNotFoundError,
    RolecallError,
    ShardNotFoundError,
    WorkerNotFoundError,
)
from rolecall.tensors import raw
from rolecall.tensors.dtypes import dtype_name
from rolecall.transport import codec
from rolecall.transport.frames import pack
from rolecall.transport.http import Request, Response, Routes
from rolecall.worker.calls import engine_error
from rolecall.worker.host import Kind
from rolecall.worker.loading import load_engine_class
from rolecall.worker.service import WorkerService, on_lane

AskGuard = Callable[[str, dict[str, Any]], Awaitable[Any]]

MAX_TENSOR = 1 << 30  # bytes that one PUT takes; larger tensors go over a framed connection
_SHARD_ID = re.compile(r"[0-9a-f]{32}")


class EngineBody(msgspec.Struct):
    engine: str
    engine_name: str | None = None
    init_args: list[Any] = []
    init_kwargs: dict[str, Any] = {}


class CallBody(msgspec.Struct):
    method: str
    engine_name: str | None = None
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    rpc_meta: dict[str, Any] | None = None


class EnvBody(msgspec.Struct):
    env: dict[str, str]


class ConfigureBody(msgspec.Struct):
    config: dict[str, Any] = {}
    role: str = ""
    rank: int = 0


class PortsBody(msgspec.Struct):
    count: int


class ForkBody(msgspec.Struct):
    role: str
    worker_index: int
    command: str | None = None
    raw_cmd: list[str] | None = None
    env: dict[str, str] = {}


class KillBody(msgspec.Struct):
    role: str
    worker_index: int


class ShardsBody(msgspec.Struct):
    shard_ids: list[str]


class WorkerRoutes:
    """Translates HTTP requests into calls of the service, and errors into statuses."""

    def __init__(self, service: WorkerService, ask_guard: AskGuard) -> None:
        self._service, self._ask_guard = service, ask_guard

    def routes(self) -> Routes:
        routes = Routes()
        for method, path, answer in (
            ("GET", "/health", self._health),
            ("GET", "/metrics", self._metrics),
            ("POST", "/set_env", self._set_env),
            ("POST", "/configure", self._configure),
            ("POST", "/create_engine", self._create_engine),
            ("POST", "/call", self._call),
            ("POST", "/alloc_ports", self._alloc_ports),
            ("POST", "/fork", self._fork),
            ("POST", "/kill_forked_worker", self._kill_forked),
            ("GET", "/data/{id}", self._data_get),
            ("POST", "/data/batch", self._data_batch),
            ("DELETE", "/data/clear", self._data_clear),
        ):
            routes.add(method, path, _guarded(answer))
        routes.add("PUT", "/data/{id}", _guarded(self._data_put), max_body=MAX_TENSOR)
        return routes

    async def _health(self, request: Request) -> Response:
        forked = await self._ask_guard("forked_children", {})
        return _json({**self._service.health(), "forked_children": forked})

    async def _metrics(self, request: Request) -> Response:
        return _json(self._service.metrics())

    async def _set_env(self, request: Request) -> Response:
        env = _body(request, EnvBody).env
        await self._ask_guard("set_env", {"env": env})
        return _json({"status": "ok"})

    async def _configure(self, request: Request) -> Response:
        body = _body(request, ConfigureBody)
        return _json(self._service.configure(body.config, body.role, body.rank))

    async def _create_engine(self, request: Request) -> Response:
        body = _body(request, EngineBody)
        host = self._service.host
        name = body.engine_name or host.worker_id
        lane = host.reserve(name)

        def make() -> Any:
            try:
                return load_engine_class(body.engine)(*body.init_args, **body.init_kwargs)
            except RolecallError:
                raise
            except Exception as e:
                raise EngineCreationError(host.worker_id, name, f"{type(e).__name__}: {e}") from e

        try:
            host.add(name, await on_lane(lane, make, asyncio.get_running_loop()))
        except BaseException:
            host.abandon(name)
            raise
        return _json({"status": "ok", "engine_name": name})

    async def _call(self, request: Request) -> Response:
        body = _body(request, CallBody)
        host = self._service.host
        method = host.method(body.engine_name or host.worker_id, body.method)
        run = partial(method.run, body.args, body.kwargs, body.rpc_meta)
        try:
            if method.kind is Kind.ASYNC:
                value = await run()
            else:
                value = await on_lane(method.lane, run, asyncio.get_running_loop())
        except Exception as e:
            raise engine_error(host.worker_id, body.method, e) from e
        return _json({"result": value})

    async def _alloc_ports(self, request: Request) -> Response:
        body = _body(request, PortsBody)
        if body.count < 1:
            return _error(400, f"count is {body.count}; use 1 or more")
        return _json(await self._ask_guard("alloc_ports", {"count": body.count}))

    async def _fork(self, request: Request) -> Response:
        body = _body(request, ForkBody)
        return _json(await self._ask_guard("fork", msgspec.to_builtins(body)))

    async def _kill_forked(self, request: Request) -> Response:
        body = _body(request, KillBody)
        try:
            await self._ask_guard("kill_forked_worker", msgspec.to_builtins(body))
        except WorkerNotFoundError as e:
            return _error(404, str(e))
        return _json({"status": "ok"})

    async def _data_get(self, request: Request) -> Response:
        try:
            (tensor,) = await asyncio.to_thread(self._service.data.store.get, [request.params["id"]])
        except ShardNotFoundError as e:
            return _error(404, str(e), missing_shard_ids=e.shard_ids)
        headers = {"x-dtype": dtype_name(tensor.dtype), "x-shape": json.dumps(list(tensor.shape))}
        body = await asyncio.to_thread(raw.to_bytes, tensor)
        return Response(200, {"content-type": "application/octet-stream", **headers}, body)

    async def _data_put(self, request: Request) -> Response:
        """The headers are those that GET answers with."""
        shard_id, store = request.params["id"], self._service.data.store
        if not _SHARD_ID.fullmatch(shard_id):
            return _error(400, f"{shard_id!r} is no id of a shard; use 32 hexadecimal digits, lower case")
        if store.has(shard_id):
            return _error(409, f"there is a shard {shard_id}, and shards do not change; clear it, or use another id")
        shape = msgspec.json.decode(request.headers.get("x-shape", ""), type=list[int])
        tensor = raw.from_bytes(request.body, request.headers.get("x-dtype", ""), shape)
        shard = await asyncio.to_thread(store.put, tensor, shard_id)
        return _json({"shard_id": shard.id, "nbytes": shard.nbytes})

    async def _data_batch(self, request: Request) -> Response:
        ids = _body(request, ShardsBody).shard_ids
        encoded = codec.encode(await asyncio.to_thread(self._service.data.store.get, ids))
        frame = b"".join(pack(encoded.header, encoded.buffers))
        return Response(200, {"content-type": "application/x-rolecall-frame"}, frame)

    async def _data_clear(self, request: Request) -> Response:
        return _json(self._service.data.store.delete(_body(request, ShardsBody).shard_ids))


def _body(request: Request, shape: type[Any]) -> Any:
    return msgspec.json.decode(request.body or b"{}", type=shape)


def _json(value: Any) -> Response:
    try:
        body = msgspec.json.encode(value)
    except (TypeError, ValueError, OverflowError, RecursionError) as e:
        return _error(400, f"the result is no JSON: {e}; call over a framed connection to get it whole")
    return Response(200, {"content-type": "application/json"}, body)


def _error(status: int, sentence: str, **facts: Any) -> Response:
    body = msgspec.json.encode({"error": sentence, **facts})
    return Response(status, {"content-type": "application/json"}, body)


def _guarded(answer: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
    async def guarded(request: Request) -> Response:
        try:
            return await answer(request)
        except ShardNotFoundError as e:
            return _error(400, str(e), missing_shard_ids=e.shard_ids)
        except EngineNotFoundError as e:
            return _error(404 if e.missing.startswith("engine") else 400, str(e))
        except (EngineImportError, EngineCreationError) as e:
            return _error(400, str(e))
        except EngineCallError as e:
            return _error(500, str(e), type=e.remote_type, traceback=e.traceback)
        except (msgspec.DecodeError, msgspec.ValidationError) as e:
            return _error(400, f"bad body: {e}")
        except RolecallError as e:
            return _error(400, str(e))

    return guarded
