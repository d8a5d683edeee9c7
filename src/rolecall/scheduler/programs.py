"""Calls to a program that hosts engines by itself, over the routes of a worker that it serves on its first port.

Each is one request of JSON. None is sent twice. Who asks sees what it would see of a worker.
"""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any, NoReturn

import msgspec

from rolecall.errors import (
    CallCancelledError,
    EncodeError,
    EngineCallError,
    EngineCreationError,
    EngineNotFoundError,
    ProtocolError,
    RPCConnectionError,
    WorkerConfigurationError,
)
from rolecall.protocol.worker_methods import CallMethod, CreateEngine, WorkerRequest
from rolecall.transport import codec
from rolecall.transport.call import Call, fresh
from rolecall.transport.channel import Channel
from rolecall.transport.codec.exceptions import full_name
from rolecall.transport.http.client import NOT_SERVED, ErrorBody, ask
from rolecall.transport.http.messages import Response
from rolecall.transport.session.caller import Reason
from rolecall.types import Worker

_HINT = "a program is asked over HTTP, in JSON"
_BYTES = (bytes, bytearray, memoryview)
DEATH_S = 2.0  # for the guard's word that a program has died whose connection broke


class ProgramPeer:
    """The program of one worker, with the methods of `Peer` that calls need. Any thread."""

    def __init__(self, worker: Worker, argv: Sequence[str], loop: asyncio.AbstractEventLoop) -> None:
        self._worker, self._argv, self._loop = worker, list(argv), loop
        self.channel = Channel(worker.id, loop, None)
        self._failure: BaseException | None = None
        self._pending: dict[Call, Future[None]] = {}
        self._lock = threading.Lock()

    def request(
        self,
        method: str,
        value: Any,
        *,
        meta: WorkerRequest | None = None,
        timeout: float | None,
        streaming: bool = False,
    ) -> Call:
        """Sends a request and returns at once.

        Raises:
            EncodeError: An argument cannot be written as JSON; nothing was sent.
            WorkerConfigurationError: It asks for what a program has no route for.
        """
        if streaming:
            self._refuse("streams nothing")
        path, body, read = self._prepared(method, value, meta)
        call = Call(self, method, value, timeout, None, streaming=False)
        with self._lock:
            if self._failure is not None:
                raise fresh(self._failure)
            asked = self._ask(call, path, body, read)
            self._pending[call] = asyncio.run_coroutine_threadsafe(asked, self._loop)
        return call

    @property
    def peer(self) -> ProgramPeer:
        """As a `Client` has one."""
        return self

    def fail(self, error: BaseException) -> None:
        """Fails all calls, later ones too."""
        with self._lock:
            self._failure = self._failure or error
        self.fail_pending(error)

    def fail_pending(self, error: BaseException) -> None:
        for call in list(self._pending):
            if self._taken(call):
                call.failed(error)

    def abandon(self, call: Call, reason: Reason) -> None:
        """Its caller waits no longer: the connection is closed, which is all that a program learns."""
        if self._taken(call):
            cancelled = reason is Reason.CANCELLED
            late = TimeoutError(f"{self._worker.id}: {call.method}() had no answer within {call.timeout} s")
            call.failed(CallCancelledError(self._worker.id, call.method) if cancelled else late)

    def consumed(self, call: Call, total: int) -> None:
        """Streams are refused."""

    def _taken(self, call: Call) -> bool:
        """Whether the call is the one's to end who asks; its request is cancelled then."""
        with self._lock:
            request = self._pending.pop(call, None)
        if request is not None:
            request.cancel()
        return request is not None

    async def _ask(self, call: Call, path: str, body: bytes, read: Callable[[Response], Any]) -> None:
        try:
            response = await ask(self._worker.ip, int(self._worker.worker_ports[0]), "POST", path, body)
            end: Callable[[], object] = partial(call.answered, True, codec.encode(read(response)))
        except OSError as e:
            await asyncio.sleep(DEATH_S)
            what = f"POST {path}: {str(e) or type(e).__name__}; it may have run, and is not sent again"
            end = partial(call.failed, RPCConnectionError(self._worker.id, what))
        except Exception as e:  # whatever it is, the call ends
            end = partial(call.failed, e)
        with self._lock:
            pending = self._pending.pop(call, None)
        if pending is not None:
            end()

    def _prepared(
        self, method: str, value: Any, meta: WorkerRequest | None
    ) -> tuple[str, bytes, Callable[[Response], Any]]:
        """Path and body of a request, and what reads its answer."""
        match meta:
            case CreateEngine():
                args, kwargs = value
                name = meta.engine_name or self._worker.id
                engine = meta.engine.replace(":", ".")  # as the reference system writes it
                asked = {"engine": engine, "engine_name": name, "init_args": args, "init_kwargs": kwargs}
                return "/create_engine", _json(asked), lambda response: self._created(response, name)
            case CallMethod():
                args, kwargs = value
                name = meta.engine_name or self._worker.id
                asked = {"method": meta.method, "engine_name": name, "args": args, "kwargs": kwargs}
                body = _json({**asked, "rpc_meta": meta.rpc_meta})
                return "/call", body, lambda response: self._called(response, meta.method, name)
            case _:
                self._refuse(f"has no route for {method!r}")

    def _created(self, response: Response, name: str) -> None:
        if response.status in NOT_SERVED:
            self._refuse("hosts no engines: it serves no POST /create_engine")
        if response.status >= 300:
            body = ErrorBody.of(response)
            raise EngineCreationError(self._worker.id, name, f"{body.type}: {body.error}", body.traceback)

    def _called(self, response: Response, method: str, name: str) -> Any:
        if response.status == 404:
            missing = f"engine {name!r} ({ErrorBody.of(response).error})"
            raise EngineNotFoundError(self._worker.id, method, missing)
        if response.status >= 300:
            body = ErrorBody.of(response)
            raise EngineCallError(self._worker.id, method, body.type, body.error, body.traceback)
        try:
            return msgspec.json.decode(response.body, type=dict[str, Any])["result"]
        except (msgspec.DecodeError, KeyError, RecursionError) as e:
            what = (
                f"the answer of {self._worker.id} to POST /call is no JSON object with a `result`, or nested too deep"
            )
            raise ProtocolError(what, response.body[:200]) from e

    def _refuse(self, what: str) -> NoReturn:
        expected = "a module of yours becomes a worker by rolecall.serve(app), see docs/http.md"
        raise WorkerConfigurationError(f"the program of worker {self._worker.id} {what}", self._argv, expected)


def _json(value: dict[str, Any]) -> bytes:
    try:
        plain = msgspec.to_builtins(value, builtin_types=_BYTES, enc_hook=_not_json)
        for name, item in plain.items():
            _refuse_altered(item, name)
        return msgspec.json.encode(plain)
    except (TypeError, ValueError, OverflowError, RecursionError) as e:
        raise EncodeError("an argument", "none of JSON", f"{_HINT}: {e}") from e


def _refuse_altered(value: Any, place: str) -> None:
    """Refuses what would arrive as something else."""
    match value:
        case float() if not math.isfinite(value):
            raise EncodeError(place, f"float, {value}", _HINT)
        case bytes() | bytearray() | memoryview():
            raise EncodeError(place, type(value).__name__, _HINT)
        case dict():
            for key, item in value.items():
                if not isinstance(key, str):
                    raise EncodeError(f"key {key!r} of {place}", type(key).__name__, f"{_HINT}, whose keys are strings")
                _refuse_altered(item, f"{place}[{key!r}]")
        case list() | tuple():
            for number, item in enumerate(value):
                _refuse_altered(item, f"{place}[{number}]")


def _not_json(value: Any) -> Any:
    raise EncodeError("an argument", full_name(type(value)), _HINT)
