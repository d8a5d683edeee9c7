"""Runs engine methods: on the engine thread, on the event loop, or on a thread of the stream."""

from __future__ import annotations

import asyncio
import logging
import traceback
from collections.abc import Coroutine, Iterable, Iterator
from concurrent.futures import Future
from contextlib import aclosing, closing, contextmanager, nullcontext
from typing import Any

from rolecall.errors import (
    CallCancelledError,
    EngineCallError,
    ProtocolError,
    RolecallError,
    ShardNotFoundError,
    WorkerTimeoutError,
)
from rolecall.protocol.worker_methods import CallMethod
from rolecall.tensors import functions, tree
from rolecall.tensors.handle import RTensor
from rolecall.tensors.service import DataService
from rolecall.tensors.shard import binding
from rolecall.transport.codec.exceptions import format_traceback, full_name, message_of
from rolecall.transport.incoming import Incoming
from rolecall.transport.loop import Tasks
from rolecall.transport.threads import in_thread, start_thread
from rolecall.worker.engines import Engines, Kind, Method
from rolecall.worker.http_request import HttpRequest

Request = Incoming | HttpRequest  # it is answered once, by `finish` or `fail`, from any thread; the first counts

log = logging.getLogger("rolecall")
_ARGUMENTS = ([list, dict], [tuple, dict])
COPIES_AT_ONCE = 16  # of results of async methods, each on a thread


class EngineCalls:
    """Starts calls of engine methods. Each request is answered exactly once."""

    def __init__(self, engines: Engines, data: DataService, loop: asyncio.AbstractEventLoop) -> None:
        self.engines, self.data, self.loop = engines, data, loop
        self._tasks = Tasks()
        self.copying = asyncio.Semaphore(COPIES_AT_ONCE)

    def start(self, request: Request, params: CallMethod) -> None:
        """Starts a call without blocking the loop's thread, which calls this. The method is looked up first.

        Raises:
            EngineNotFoundError, MethodNotFoundError: Nothing was run.
            EngineCallError: A generator was called, or a method that is not one was streamed.
        """
        method = self.engines.method(params.engine_name or self.engines.worker_id, params.method)
        call = EngineCall(self, request, params, method)
        log.debug("%s() is called", params.method)
        if method.kind is Kind.ASYNC_GENERATOR and request.streaming:
            self._spawn(call, call.stream_on_loop())
        elif method.kind is Kind.ASYNC and not request.streaming:
            self._spawn(call, call.on_loop())
        elif method.kind is Kind.PLAIN and not request.streaming:
            method.thread.submit(call.on_engine_thread)
        elif method.kind in (Kind.PLAIN, Kind.GENERATOR) and request.streaming:
            start_thread(call.stream_on_thread, f"engine stream {params.method}")
        else:
            raise EngineCallError(self.engines.worker_id, params.method, "TypeError", _hint(params.method, method.kind))

    def _spawn(self, call: EngineCall, work: Coroutine[Any, Any, None]) -> None:
        task = self._tasks.start(work)
        # Cancelled before its first step, its own error handling did not run.
        task.add_done_callback(lambda task: call.request.fail(call.cancelled()) if task.cancelled() else None)
        call.request.on_cancel(task.cancel)


class EngineCall:
    """One call, with one method of this class for each kind of engine method."""

    __slots__ = ("_copying", "_data", "_loop", "_method", "_params", "_progress", "_worker_id", "request")

    def __init__(self, calls: EngineCalls, request: Request, params: CallMethod, method: Method) -> None:
        self.request, self._params, self._method = request, params, method
        self._data, self._loop, self._copying = calls.data, calls.loop, calls.copying
        self._progress, self._worker_id = calls.engines.progress, calls.engines.worker_id

    def cancelled(self) -> CallCancelledError:
        """The answer to a cancelled call."""
        return CallCancelledError(self._worker_id, self._params.method)

    def on_engine_thread(self) -> None:
        """Runs a plain method. `EngineThread` counts it."""
        if self.request.cancelled:
            return self.request.fail(self.cancelled())
        try:
            value = self._run(self._arguments())
            if hasattr(value, "__await__"):  # a plain function that returns a coroutine
                value = asyncio.run_coroutine_threadsafe(_awaited(value), self._loop).result()
            elif isinstance(value, Future):
                value = value.result()
            if self._params.tensors == "remote":
                self._finish(value, self._data.remotize(value))
            else:
                self.request.finish(value)
        except BaseException as e:  # every call is answered
            self._fail(e)

    async def on_loop(self) -> None:
        """Runs an `async` method."""
        with self._answering():
            value = await self._run(await functions.alocalized(self.request.received()))
            if isinstance(value, Future):
                value = await asyncio.wrap_future(value)
            self._finish(value, await self._aremotized(value) if self._params.tensors == "remote" else value)

    async def stream_on_loop(self) -> None:
        """Runs an `async` generator."""
        with self._answering():
            items = self._run(await functions.alocalized(self.request.received()))
            async with aclosing(items) if hasattr(items, "aclose") else nullcontext():
                async for item in items:
                    answer = self._remotized(item)
                    try:
                        await self.request.emit(answer)
                    except BaseException:
                        _free(item, answer)
                        raise
            self.request.finish(None)

    def stream_on_thread(self) -> None:
        """Runs a generator, or a plain method that returns an iterable."""
        with self._answering():
            items = self._iterated(self._run(functions.localized(self.request.received())))
            with closing(items) if hasattr(items, "close") else nullcontext():  # also when the caller stops early
                for item in items:
                    answer = self._remotized(item)
                    try:
                        self.request.emit_blocking(answer)
                    except BaseException:
                        _free(item, answer)
                        raise
            self.request.finish(None)

    def _arguments(self) -> Any:
        """Args and kwargs, with what handles stand for. Where that is lost the engine is told, if it asks for that."""
        received = self.request.received()
        try:
            return functions.localized(received)
        except (ShardNotFoundError, WorkerTimeoutError) as e:
            if (told := self._method.arguments_lost) is not None:
                args, kwargs = received.value()
                told(self._params.method, args, kwargs, e)
            raise

    def _run(self, arguments: Any) -> Any:
        """Args and kwargs, with tensors in place of handles."""
        if type(arguments) not in (list, tuple) or [*map(type, arguments)] not in _ARGUMENTS:
            raise ProtocolError("arguments of a call are not (args, kwargs)", type(arguments).__name__)
        args, kwargs = arguments
        return self._method.run(args, kwargs, self._params.rpc_meta)

    def _iterated(self, value: Any) -> Any:
        if not isinstance(value, Iterable) or isinstance(value, str | bytes):
            name, kind = self._params.method, type(value).__name__
            raise TypeError(f"{name}() returned {kind}, which cannot be streamed; use .call({name!r}, ...)")
        return iter(value)

    @contextmanager
    def _answering(self) -> Iterator[None]:
        """Counts the call. Answers the request with the exception when the block raises one."""
        self._progress.begin()
        try:
            with binding.using(self._data):
                yield
        except BaseException as e:  # every call is answered
            self._fail(e)
        finally:
            self._progress.end()

    def _fail(self, error: BaseException) -> None:
        if isinstance(error, asyncio.CancelledError) and self.request.cancelled:
            return self.request.fail(self.cancelled())
        told = engine_error(self._worker_id, self._params.method, error)
        if isinstance(told, EngineCallError):
            log.error("%s() raised; its caller is told\n%s", self._params.method, told.traceback)
        self.request.fail(told)

    def _remotized(self, value: Any) -> Any:
        return self._data.remotize(value) if self._params.tensors == "remote" else value

    async def _aremotized(self, value: Any) -> Any:
        async with self._copying:
            return await in_thread(self._remotized, value)  # copying blocks

    def _finish(self, value: Any, answer: Any) -> None:
        """Answers with `answer`: `value` with handles in place of tensors, or `value` itself."""
        try:
            self.request.finish(answer)
        except BaseException:
            _free(value, answer)
            raise


def _free(value: Any, answer: Any) -> None:
    """Frees the shards that were stored for the handles in `answer`, which the caller never received."""
    own = {id(leaf) for leaf in tree.leaves(value)}
    functions.clear([leaf for leaf in tree.leaves(answer) if isinstance(leaf, RTensor) and id(leaf) not in own])


def engine_error(worker_id: str, method: str, error: BaseException) -> RolecallError:
    """The error that the caller gets: RolecallErrors of this package unchanged, all others as an EngineCallError."""
    if isinstance(error, RolecallError) and not isinstance(error, EngineCallError) and _raised_by_rolecall(error):
        return error
    text = format_traceback(_without_own_frames(error))
    reply = EngineCallError(worker_id, method, full_name(type(error)), message_of(error), text)
    reply.__cause__ = error
    return reply


def _raised_by_rolecall(error: BaseException) -> bool:
    """True when no frame of the traceback belongs to an engine."""
    own = ("rolecall.", "asyncio.", "concurrent.", "contextlib")
    frames = traceback.walk_tb(error.__traceback__)
    return all(frame.f_globals.get("__name__", "").startswith(own) for frame, _ in frames)


def _without_own_frames(error: BaseException) -> BaseException:
    """The exception with a traceback that begins in the engine's code, if the traceback reaches it."""
    tb = error.__traceback__
    while tb is not None and tb.tb_frame.f_globals.get("__name__", "").startswith(("rolecall.worker.", "contextlib")):
        tb = tb.tb_next
    return error.with_traceback(tb) if tb is not None else error


def _hint(name: str, kind: Kind) -> str:
    if kind is Kind.ASYNC:
        return f"{name}() is not a generator and cannot be streamed; use .call({name!r}, ...)"
    return f'{name}() yields a stream; use .stream({name!r}, ...), or "stream": true over HTTP'


async def _awaited(value: Any) -> Any:
    return await value
