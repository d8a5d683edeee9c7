"""Running one engine method for one request: on the lane, on the loop, or as a stream beside the lane."""

from __future__ import annotations

import asyncio
import inspect
import threading
import traceback
from collections.abc import Callable, Coroutine, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from rolecall.errors import CallCancelledError, EngineCallError, RolecallError
from rolecall.tensors import functions, tree
from rolecall.tensors.binding import binding
from rolecall.tensors.handle import RTensor
from rolecall.tensors.service import DataService
from rolecall.transport.peer import Incoming
from rolecall.worker.host import META, EngineHost, Kind, Method


class Calls:
    """Takes requests for engine methods and answers each exactly once."""

    def __init__(self, host: EngineHost, data: DataService, loop: asyncio.AbstractEventLoop) -> None:
        self._host, self._data, self._loop = host, data, loop
        self._tasks: set[asyncio.Task[None]] = set()

    def dispatch(self, incoming: Incoming) -> None:
        """Starts the call; runs on the loop and never blocks it."""
        meta = incoming.meta
        method = self._host.method(meta.get("engine") or self._host.worker_id, meta["method"])
        if incoming.streaming:
            self._start_stream(incoming, method)
        elif method.kind is Kind.PLAIN:
            method.lane.submit(lambda: self._on_lane(incoming, method))
        elif method.kind is Kind.ASYNC:
            self._spawn(incoming, self._on_loop(incoming, method))
        else:
            name = incoming.meta["method"]
            hint = f"{name}() yields a stream; use .stream({name!r}, ...)"
            raise EngineCallError(self._host.worker_id, name, "TypeError", hint)

    def _on_lane(self, incoming: Incoming, method: Method) -> None:
        if incoming.cancelled:
            return incoming.fail(CallCancelledError(self._host.worker_id, incoming.meta["method"]))
        try:
            with binding.using(self._data):
                args, kwargs = functions.localize(incoming.args())
                value = method.run(args, kwargs, incoming.meta.get(META))
            if inspect.isawaitable(value):  # a plain function that hands out a coroutine
                value = asyncio.run_coroutine_threadsafe(_awaited(value), self._loop).result()
            value = self._leave_tensors(incoming, value)
        except BaseException as e:
            return incoming.fail(self._reply_error(incoming, e))
        incoming.finish(value)

    async def _on_loop(self, incoming: Incoming, method: Method) -> None:
        self._host.progress.begin()
        try:
            with binding.using(self._data):
                args, kwargs = await functions.alocalize(incoming.args())
                value = await method.run(args, kwargs, incoming.meta.get(META))
            if incoming.meta.get("tensors") == "remote":
                value = await asyncio.to_thread(self._data.remotize, value)  # it copies, and the loop serves others
        except BaseException as e:
            incoming.fail(self._reply_error(incoming, e))
        else:
            incoming.finish(value)
        finally:
            self._host.progress.end()

    def _start_stream(self, incoming: Incoming, method: Method) -> None:
        if method.kind is Kind.ASYNC_GENERATOR:
            self._spawn(incoming, self._stream_on_loop(incoming, method))
        elif method.kind is Kind.ASYNC:
            name = incoming.meta["method"]
            raise EngineCallError(
                self._host.worker_id, name, "TypeError", f"{name}() yields no stream; use .call({name!r}, ...)"
            )
        else:
            run = lambda: self._stream_on_thread(incoming, method)  # noqa: E731
            threading.Thread(target=run, name=f"stream {incoming.meta['method']}", daemon=True).start()

    async def _stream_on_loop(self, incoming: Incoming, method: Method) -> None:
        self._host.progress.begin()
        try:
            with binding.using(self._data):
                args, kwargs = await functions.alocalize(incoming.args())
                async with _closing(method.run(args, kwargs, incoming.meta.get(META))) as items:
                    async for item in items:
                        with self._left_behind(incoming, item) as left:
                            await incoming.emit(left)
        except BaseException as e:
            incoming.fail(self._reply_error(incoming, e))
        else:
            incoming.finish(None)
        finally:
            self._host.progress.end()

    def _stream_on_thread(self, incoming: Incoming, method: Method) -> None:
        self._host.progress.begin()
        try:
            with binding.using(self._data):
                args, kwargs = functions.localize(incoming.args())
                items = _iterated(incoming.meta["method"], method.run(args, kwargs, incoming.meta.get(META)))
                try:
                    for item in items:
                        with self._left_behind(incoming, item) as left:
                            incoming.emit_blocking(left)
                finally:
                    close = getattr(items, "close", None)
                    if close is not None:
                        close()
        except BaseException as e:
            incoming.fail(self._reply_error(incoming, e))
        else:
            incoming.finish(None)
        finally:
            self._host.progress.end()

    def _leave_tensors(self, incoming: Incoming, value: Any) -> Any:
        return self._data.remotize(value) if incoming.meta.get("tensors") == "remote" else value

    @contextmanager
    def _left_behind(self, incoming: Incoming, item: Any) -> Iterator[Any]:
        """`item` as it travels. When it does not, its tensors are freed again: no handle of them is anywhere."""
        left = self._leave_tensors(incoming, item)
        try:
            yield left
        except BaseException:
            own = {id(leaf) for leaf in tree.leaves(item)}
            functions.clear([leaf for leaf in tree.leaves(left) if isinstance(leaf, RTensor) and id(leaf) not in own])
            raise

    def _spawn(self, incoming: Incoming, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(lambda task: self._ended(task, incoming))
        incoming.on_cancel(task.cancel)

    def _ended(self, task: asyncio.Task[None], incoming: Incoming) -> None:
        self._tasks.discard(task)
        if task.cancelled():  # before its first step, so that it could not answer itself
            incoming.fail(CallCancelledError(self._host.worker_id, incoming.meta["method"]))

    def _reply_error(self, incoming: Incoming, error: BaseException) -> RolecallError:
        name = incoming.meta["method"]
        if isinstance(error, asyncio.CancelledError) and incoming.cancelled:
            return CallCancelledError(self._host.worker_id, name)
        return engine_error(self._host.worker_id, name, error)


def engine_error(worker_id: str, method: str, error: BaseException) -> RolecallError:
    """What the caller gets for an exception: ours as they are when no user code raised them, else EngineCallError."""
    if isinstance(error, RolecallError) and not isinstance(error, EngineCallError) and _is_ours(error):
        return error
    text = "".join(traceback.format_exception(_without_our_frames(error)))
    reply = EngineCallError(worker_id, method, full_name(type(error)), str(error), text)
    reply.__cause__ = error
    return reply


def full_name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _is_ours(error: BaseException) -> bool:
    """True when the exception was raised below this module without passing through an engine."""
    tb = error.__traceback__
    while tb is not None:
        if not tb.tb_frame.f_globals.get("__name__", "").startswith(("rolecall.", "asyncio.", "concurrent.")):
            return False
        tb = tb.tb_next
    return True


def _without_our_frames(error: BaseException) -> BaseException:
    if error.__traceback__ is not None and error.__traceback__.tb_next is not None:
        return error.with_traceback(error.__traceback__.tb_next)
    return error


def _iterated(name: str, value: Any) -> Iterator[Any]:
    if not isinstance(value, Iterable):
        raise TypeError(f"{name}() returned {type(value).__name__}, which is no stream; use .call({name!r}, ...)")
    return iter(value)


async def _awaited(value: Any) -> Any:
    return await value


class _closing:
    """Closes an async generator also when its consumer is cancelled."""

    def __init__(self, items: Any) -> None:
        self._items = items

    async def __aenter__(self) -> Any:
        return self._items

    async def __aexit__(self, *exc: object) -> None:
        close: Callable[[], Any] | None = getattr(self._items, "aclose", None)
        if close is not None:
            await close()
