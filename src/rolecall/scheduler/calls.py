"""How a call is made: its options, the path of an engine's class, and the errors a caller may see."""

from __future__ import annotations

import sys
import weakref
from collections.abc import AsyncIterator, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from rolecall.errors import CallCancelledError, EncodeError, EngineImportError, WorkerTimeoutError
from rolecall.transport.peer import Call
from rolecall.types import TensorPolicy, check_one_of

Items = TypeVar("Items")


@dataclass(frozen=True)
class CallOptions:
    """What a caller may ask of a call. These never share a namespace with the engine's own arguments.

    Attributes:
        timeout: Seconds to wait; None waits as long as the worker lives.
        engine: Name of the engine; None is the worker's default engine.
        tensors: `local` brings results whole; `remote` leaves tensors on the worker and brings handles.
    """

    timeout: float | None = None
    engine: str | None = None
    tensors: TensorPolicy | None = None

    def __post_init__(self) -> None:
        if self.tensors is not None:
            check_one_of("tensor policy", self.tensors, TensorPolicy)


class PendingCall:
    """A call under way: wait for it, await it from any event loop, iterate it if it streams, or cancel it.

    Its arguments are held until the answer is there, also when nobody waits for it, so that handles among them are not
    freed meanwhile.
    """

    __slots__ = ("_call", "_timeout", "_what", "worker_id")

    def __init__(self, call: Call, worker_id: str, what: str, timeout: float | None) -> None:
        self._call, self.worker_id, self._what, self._timeout = call, worker_id, what, timeout

    def result(self) -> Any:
        """Blocks until the answer is there. Ctrl-C interrupts the waiting, and `result` may be asked for again.

        Raises:
            EngineCallError: The method raised.
            WorkerFailedError: The worker died.
            RPCConnectionError: Its role was deleted.
            WorkerTimeoutError: The timeout passed.
            EncodeError: The method's result is not serializable.
            CallCancelledError: `cancel()` was called.
        """
        with self._telling():
            return self._call.result()

    def __await__(self) -> Generator[Any, None, Any]:
        with self._telling():
            return (yield from self._call.__await__())

    def items(self) -> Iterator[Any]:
        """The items of a stream. The call is cancelled when the iterator is closed or dropped."""
        return self._cancelled_with(self._items())

    def aitems(self) -> AsyncIterator[Any]:
        """The same for `async for`."""
        return self._cancelled_with(self._aitems())

    def __iter__(self) -> Iterator[Any]:
        return self.items()

    def __aiter__(self) -> AsyncIterator[Any]:
        return self.aitems()

    def _items(self) -> Iterator[Any]:
        try:
            with self._telling():
                yield from self._call
        finally:
            self._call.cancel()

    async def _aitems(self) -> AsyncIterator[Any]:
        try:
            with self._telling():
                async for item in self._call:
                    yield item
        finally:
            self._call.cancel()

    def _cancelled_with(self, items: Items) -> Items:
        """A generator that was never begun runs no `finally`; its stream would wait for its reader for ever."""
        weakref.finalize(items, self._call.cancel_soon).atexit = False
        return items

    def cancel(self) -> None:
        """Gives up waiting; an `async` method is cancelled on the worker, a plain one that runs goes on."""
        self._call.cancel()

    @contextmanager
    def _telling(self) -> Iterator[None]:
        """Errors with whom and what was called."""
        try:
            yield
        except EncodeError as e:
            place = f"{e.place} of {self._what}() on {self.worker_id}"
            raise EncodeError(place, e.type_name, e.hint) from e
        except CallCancelledError as e:
            raise CallCancelledError(self.worker_id, self._what) from e
        except TimeoutError as e:
            hint = f"the method may still be running; see `rolecall stack {self.worker_id}`"
            raise WorkerTimeoutError(self.worker_id, self._timeout or 0.0, "answer", hint) from e


def engine_path(engine: str | type) -> str:
    """The path by which workers import an engine's class.

    Raises:
        EngineImportError: The class cannot be imported by name elsewhere.
    """
    if isinstance(engine, str):
        return engine
    if not isinstance(engine, type):
        raise EngineImportError(repr(engine), "pass a class or 'package.module.Class'")
    path = f"{engine.__module__}:{engine.__qualname__}"
    if "<locals>" in path:
        raise EngineImportError(
            path, "a class made inside a function cannot be imported on a worker; move it to the top of its module"
        )
    if path.startswith("__main__:") and not controller_main():
        raise EngineImportError(path, "a class of an interactive session cannot be imported on a worker; use a module")
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
