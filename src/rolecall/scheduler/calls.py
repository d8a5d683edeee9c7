"""How a call is made: its options, the path of an engine's class, and the errors a caller may see."""

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from types import FunctionType
from typing import Any, NamedTuple, TypedDict, TypeVar

from rolecall.errors import (
    CallCancelledError,
    EncodeError,
    EngineImportError,
    WorkerConfigurationError,
    WorkerTimeoutError,
)
from rolecall.transport.peer import Call
from rolecall.types import TensorPolicy, WorkerSetup, check_one_of, check_seconds

R = TypeVar("R")
EngineClass = str | Callable[..., object]  # a class, as a call of which a type checker knows its parameters


class Options(TypedDict, total=False):
    """The keywords of `with_options`: the fields of `CallOptions`."""

    timeout: float | None
    engine: str | None
    tensors: TensorPolicy | None
    return_errors: bool


@dataclass(frozen=True)
class CallOptions:
    """What a caller may ask of a call. These never share a namespace with the engine's own arguments.

    Attributes:
        timeout: Seconds to wait; None waits as long as the worker lives.
        engine: Name of the engine; None is the worker's default engine.
        tensors: `local` brings results whole; `remote` leaves tensors and arrays on the worker and brings handles.
        return_errors: A call that fails gives its error as its result, instead of raising it; see `Role.with_options`.
    """

    timeout: float | None = None
    engine: str | None = None
    tensors: TensorPolicy | None = None
    return_errors: bool = False

    def __post_init__(self) -> None:
        if self.tensors is not None:
            check_one_of("tensor policy", self.tensors, TensorPolicy)
        if self.timeout is not None:
            check_seconds("timeout", self.timeout)

    def changed(self, options: Options) -> CallOptions:
        """These with some replaced."""
        if unknown := options.keys() - self.__dataclass_fields__.keys():
            known = ", ".join(self.__dataclass_fields__)
            raise WorkerConfigurationError("unknown option of a call", sorted(unknown), f"there are {known}")
        return replace(self, **options)


def check_arguments(how: str, method: object, args: object) -> None:
    """Checks a tuple of arguments; a str would fall apart into its letters.

    Raises:
        WorkerConfigurationError: It is no tuple or list.
    """
    if not isinstance(args, tuple | list):
        raise WorkerConfigurationError("arguments that are no tuple", args, f"use {how}({method!r}, [(1,), (2,)])")


class EngineRequest(NamedTuple):
    """What an engine is made with."""

    engine: EngineClass
    args: Sequence[Any]
    kwargs: dict[str, Any]
    options: CallOptions


class _SentCall:
    """A call, and the words by which its errors say whom and what was called."""

    __slots__ = ("_call", "_timeout", "_what", "worker_id")

    def __init__(self, call: Call, worker_id: str, what: str, timeout: float | None) -> None:
        self._call, self.worker_id, self._what, self._timeout = call, worker_id, what, timeout

    def _told(self, error: Exception) -> Exception:
        """An error of `_TOLD` with whom and what was called."""
        if isinstance(error, EncodeError):
            return EncodeError(f"{error.place} of {self._what}() on {self.worker_id}", error.type_name, error.hint)
        if isinstance(error, CallCancelledError):
            return CallCancelledError(self.worker_id, self._what)
        hint = f"the method may still be running; see `rolecall stack {self.worker_id}`"
        return WorkerTimeoutError(self.worker_id, self._timeout or 0.0, "answer", hint)


_TOLD = (EncodeError, CallCancelledError, TimeoutError)
_FUTURE_LOCK = threading.Lock()


class PendingCall(_SentCall, Future[R]):
    """A call under way: a `concurrent.futures.Future` that can be awaited from any event loop, too.

    `concurrent.futures.wait` and `as_completed`, and `asyncio.wrap_future`, take it. Callbacks run on the I/O thread
    and must not wait. Its arguments are held until the answer is there, also when nobody waits for it, so that handles
    among them are not freed meanwhile.

    Attributes:
        worker_id: Whom it was sent to.
    """

    def __getattr__(self, name: str) -> Any:
        """Makes the state of a future when something asks for it, since most calls are only waited for."""
        if name not in ("_condition", "_state", "_waiters", "_done_callbacks", "_result", "_exception"):
            raise AttributeError(name)
        with _FUTURE_LOCK:
            if "_condition" not in self.__dict__:
                Future.__init__(self)
                self._call.add_done_callback(self._finish)
        return self.__dict__[name]

    def _finish(self) -> None:
        if self._call.cancelled:
            Future.cancel(self)
            self.set_running_or_notify_cancel()
        else:
            ended: Future[Any] = self
            ended.set_result(None)  # `result` has the value, which is decoded by who asks for it

    def __repr__(self) -> str:
        return f"<PendingCall {self._what}() on {self.worker_id}: {'done' if self.done() else 'running'}>"

    def __await__(self) -> Generator[Any, None, R]:
        try:
            value: R = yield from self._call.__await__()
            return value
        except _TOLD as e:
            raise self._told(e) from e

    def result(self, timeout: float | None = None) -> R:
        """Blocks until the answer is there. Ctrl-C interrupts the waiting, and `result` may be asked for again.

        Args:
            timeout: Seconds to wait here; the call goes on after them. Its own limit is `with_options(timeout=)`.

        Raises:
            EngineCallError: The method raised.
            WorkerFailedError: The worker died.
            RPCConnectionError: Its role was deleted.
            WorkerTimeoutError: The call's own timeout passed.
            EncodeError: The method's result is not serializable.
            CallCancelledError: `cancel()` was called.
            TimeoutError: `timeout` passed.
        """
        if timeout is not None and not self._call.wait_done(timeout):
            raise TimeoutError(f"{self._what}() on {self.worker_id} has not ended within {timeout:g} s; it goes on")
        try:
            value: R = self._call.result()
            return value
        except _TOLD as e:
            raise self._told(e) from e

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """The error that `result` would raise, or None. A cancelled call raises its CallCancelledError."""
        try:
            self.result(timeout)
        except CallCancelledError:
            raise
        except Exception as e:
            if not self.done():
                raise
            return e
        return None

    def done(self) -> bool:
        """Whether the answer is there."""
        return self._call.done

    def running(self) -> bool:
        """Whether the answer is not there yet."""
        return not self._call.done

    def cancelled(self) -> bool:
        """Whether it was cancelled before its answer came."""
        return self._call.cancelled

    def cancel(self) -> bool:
        """Gives up waiting; an `async` method is cancelled on the worker, a plain one that runs goes on."""
        self._call.cancel()
        return self._call.cancelled


class PendingStream(_SentCall):
    """A stream under way, to be iterated once. It is cancelled when its iterator is closed or dropped."""

    def __iter__(self) -> Iterator[Any]:
        items = self._items()
        self._cancel_with(items)
        return items

    def __aiter__(self) -> AsyncIterator[Any]:
        items = self._aitems()
        self._cancel_with(items)
        return items

    def _items(self) -> Iterator[Any]:
        try:
            yield from self._call
        except _TOLD as e:
            raise self._told(e) from e
        finally:
            self._call.cancel()

    async def _aitems(self) -> AsyncIterator[Any]:
        try:
            async for item in self._call:
                yield item
        except _TOLD as e:
            raise self._told(e) from e
        finally:
            self._call.cancel()

    def _cancel_with(self, items: object) -> None:
        """A generator that was never begun runs no `finally`; its stream would wait for its reader for ever."""
        weakref.finalize(items, self._call.cancel_soon).atexit = False


def engine_path(engine: EngineClass) -> str:
    """The path by which workers import an engine's class.

    Raises:
        EngineImportError: The class cannot be imported by name elsewhere.
    """
    if isinstance(engine, str):
        return engine
    if not isinstance(engine, type):
        raise EngineImportError(repr(engine), "pass a class or 'package.module.Class'")
    return _path_of(engine, "class")


def setup_path(setup: WorkerSetup | None) -> str:
    """The path by which workers import the function that sets them up; empty for none. Errors as `engine_path`."""
    if setup is None or isinstance(setup, str):
        return setup or ""
    if not isinstance(setup, FunctionType):
        raise EngineImportError(repr(setup), "pass a function or 'package.module.function'")
    return _path_of(setup, "function")


def _path_of(named: type | FunctionType, kind: str) -> str:
    path = f"{named.__module__}:{named.__qualname__}"
    if "<locals>" in path:
        raise EngineImportError(
            path, f"a {kind} made inside a function cannot be imported on a worker; move it to the top of its module"
        )
    if path.startswith("__main__:") and not controller_main():
        raise EngineImportError(
            path, f"a {kind} of an interactive session cannot be imported on a worker; use a module"
        )
    return path


def controller_main() -> str:
    """What the controller runs: the path of its script, the name of the module that `python -m` was given, or ""."""
    main = sys.modules.get("__main__")
    if spec := getattr(main, "__spec__", None):
        return str(spec.name)
    path = getattr(main, "__file__", None)
    return str(Path(path).absolute()) if path and Path(path).is_file() else ""


def argument_place(place: str) -> str:
    """Names a place in a call's arguments as the caller wrote them: `value[0][1].fn` is `args[1].fn`."""
    return place.replace("value[0]", "args", 1).replace("value[1]", "kwargs", 1)
