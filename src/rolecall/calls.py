"""How a call is made: its options, the path of an engine's class, and the errors a caller may see."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rolecall.errors import CallCancelledError, EncodeError, EngineImportError, RolecallError, WorkerTimeoutError
from rolecall.rpc.peer import Call
from rolecall.types import TensorPolicy, check_tensors


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
            check_tensors(self.tensors)


class PendingCall:
    """A call under way: wait for it, await it from any event loop, iterate it if it streams, or cancel it.

    It holds the arguments until the answer is there, so that handles among them are not freed meanwhile.
    """

    __slots__ = ("_arguments", "_call", "_timeout", "_what", "worker_id")

    def __init__(self, call: Call, worker_id: str, what: str, arguments: Any, timeout: float | None) -> None:
        self._call, self.worker_id, self._what = call, worker_id, what
        self._arguments, self._timeout = arguments, timeout

    def result(self) -> Any:
        """Blocks until the answer is there. Ctrl-C interrupts the waiting.

        Raises:
            EngineCallError: The method raised.
            WorkerFailedError: The worker died.
            WorkerTimeoutError: The timeout passed.
            EncodeError: The method's result does not travel.
            CallCancelledError: `cancel()` was called.
        """
        try:
            return self._call.result()
        except (TimeoutError, EncodeError, CallCancelledError) as e:
            raise self._told(e) from e
        finally:
            self._arguments = None

    def __await__(self) -> Generator[Any, None, Any]:
        try:
            return (yield from self._call.__await__())
        except (TimeoutError, EncodeError, CallCancelledError) as e:
            raise self._told(e) from e
        finally:
            self._arguments = None

    def __iter__(self) -> Iterator[Any]:
        try:
            yield from self._call
        except (TimeoutError, EncodeError, CallCancelledError) as e:
            raise self._told(e) from e
        finally:
            self._call.cancel()

    async def __aiter__(self) -> AsyncIterator[Any]:
        try:
            async for item in self._call:
                yield item
        except (TimeoutError, EncodeError, CallCancelledError) as e:
            raise self._told(e) from e
        finally:
            self._call.cancel()

    def cancel(self) -> None:
        """Gives up waiting; an `async` method is cancelled on the worker, a plain one that runs goes on."""
        self._call.cancel()

    def _told(self, error: TimeoutError | EncodeError | CallCancelledError) -> RolecallError:
        """The same, with whom and what was called."""
        if isinstance(error, EncodeError):
            return EncodeError(f"{error.place} of {self._what}() on {self.worker_id}", error.type_name, error.hint)
        if isinstance(error, CallCancelledError):
            return CallCancelledError(self.worker_id, self._what)
        hint = f"the method may still be running; see `rolecall stack {self.worker_id}`"
        return WorkerTimeoutError(self.worker_id, self._timeout or 0.0, "answer", hint)


def engine_path(engine: str | type) -> str:
    """The path by which workers import an engine's class.

    Raises:
        EngineImportError: The class cannot be imported by name elsewhere.
    """
    if isinstance(engine, str):
        return engine
    if not isinstance(engine, type):
        raise EngineImportError(repr(engine), "pass a class or 'package.module.Class'")
    path = f"{_module_of(engine)}:{engine.__qualname__}"
    if "<locals>" in path:
        raise EngineImportError(
            path, "a class made inside a function cannot be imported on a worker; move it to the top of its module"
        )
    if path.startswith("__main__:") and main_path() is None:
        raise EngineImportError(path, "a class of an interactive session cannot be imported on a worker; use a module")
    return path


def _module_of(engine: type) -> str:
    """`python -m package.module` calls the module `__main__`; elsewhere it has its own name."""
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    return spec.name if engine.__module__ == "__main__" and spec is not None else engine.__module__


def main_path() -> str | None:
    """The controller's script, where there is one that workers can load."""
    main = sys.modules.get("__main__")
    path = getattr(main, "__file__", None)
    return path if path and Path(path).is_file() and getattr(main, "__spec__", None) is None else None


def argument_place(place: str) -> str:
    """Names a place in a call's arguments as the caller wrote them: `value[0][1].fn` is `args[1].fn`."""
    return place.replace("value[0]", "args", 1).replace("value[1]", "kwargs", 1)
