"""The engines of one worker: named objects, each with an engine thread. Knows no connections."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from functools import partialmethod, singledispatchmethod
from typing import Any

from rolecall.errors import EngineCreationError, EngineNotFoundError, MethodNotFoundError
from rolecall.worker.engine_thread import EngineThread
from rolecall.worker.progress import Progress

META = "rpc_meta"


class Kind(Enum):
    """How a method runs: PLAIN on the engine thread, the others concurrently with it."""

    PLAIN = auto()
    ASYNC = auto()
    GENERATOR = auto()
    ASYNC_GENERATOR = auto()


@dataclass
class HostedEngine:
    """One engine with its thread. `made`: it is there; before that its name is reserved."""

    thread: EngineThread
    engine: Any = None
    made: bool = False


@dataclass(frozen=True)
class Method:
    """A method found on an engine.

    Attributes:
        static: The class attribute of that name; when it is another one, the method was replaced.
        takes_meta: Whether it has a parameter `rpc_meta`.
        arguments_lost: The engine's method of that name, if it has one: called in the place of `call`, with the name,
            args and kwargs of the call, handles among them, and the error, when these cannot be fetched.
    """

    call: Callable[..., Any]
    kind: Kind
    thread: EngineThread
    static: Any = None
    takes_meta: bool = False
    arguments_lost: Callable[[str, list[Any], dict[str, Any], Exception], None] | None = None

    def run(self, args: Sequence[Any], kwargs: dict[str, Any], rpc_meta: Any) -> Any:
        """Calls the method. The worker does not interpret `rpc_meta`."""
        if self.takes_meta and rpc_meta is not None:
            kwargs = {**kwargs, META: rpc_meta}
        return self.call(*args, **kwargs)


class Engines:
    """The engines by name, and the look-up of their methods.

    Args:
        one_thread: All engines have the same thread, which ends with the worker.
    """

    def __init__(self, worker_id: str, progress: Progress, *, one_thread: bool = False) -> None:
        self.worker_id = worker_id
        self.progress = progress
        self._shared = EngineThread(worker_id, progress) if one_thread else None
        self._engines: dict[str, HostedEngine] = {}
        self._methods: dict[tuple[str, str], Method] = {}
        self._lock = threading.Lock()

    def names(self) -> list[str]:
        return [name for name, hosted in list(self._engines.items()) if hosted.made]

    def waiting(self) -> int:
        """Number of calls that wait for their engine thread."""
        return sum(thread.waiting for thread in {hosted.thread for hosted in list(self._engines.values())})

    def reserve(self, name: str) -> EngineThread:
        """Reserves the name and returns the thread on which to create the engine.

        Raises:
            EngineCreationError: An engine of that name exists, or is being created.
        """
        with self._lock:
            if (there := self._engines.get(name)) is not None:
                reason = "an engine of that name exists; destroy_engine() ends it, or choose another engine name"
                if not there.made:
                    reason = "its constructor has not returned yet; see `rolecall stack`, or restart the worker"
                raise EngineCreationError(self.worker_id, name, reason)
            hosted = self._engines[name] = HostedEngine(self._shared or EngineThread(name, self.progress))
            return hosted.thread

    def add(self, name: str, engine: Any) -> None:
        """Makes the engine that was created under a reserved name available to calls."""
        hosted = self._engines[name]
        hosted.engine, hosted.made = engine, True

    def release(self, name: str) -> None:
        """Releases a reserved name after the engine's creation failed."""
        self.leave(self._engines.pop(name).thread)

    def leave(self, thread: EngineThread) -> None:
        """Lets the thread of an engine that is gone end, unless it is everybody's."""
        if thread is not self._shared:
            thread.close()

    def method(self, engine_name: str, name: str) -> Method:
        """Looks a method up. No code of the engine runs.

        Raises:
            EngineNotFoundError: There is no such engine.
            MethodNotFoundError: It has no such public method.
        """
        found = self._methods.get((engine_name, name))
        if found is not None and _is_current(self._engines[engine_name].engine, name, found):
            return found
        return self._find(engine_name, name)

    def _find(self, engine_name: str, name: str) -> Method:
        hosted = self._engines.get(engine_name)
        if hosted is None or not hosted.made:
            raise EngineNotFoundError(self.worker_id, name, f"engine {engine_name!r}", self.names())
        missing = object()
        # A class attribute first: a property's getter is user code, and looking a name up must not run it.
        static = missing if name.startswith("_") else inspect.getattr_static(hosted.engine, name, missing)
        call = None if static is missing or _is_getter(static) else getattr(hosted.engine, name)
        if not callable(call):
            cls = type(hosted.engine)
            known = [n for n in dir(cls) if not n.startswith("_") and _is_method(cls, n)]
            raise MethodNotFoundError(self.worker_id, name, f"method {name!r} of engine {engine_name!r}", known)
        lost, static = getattr(hosted.engine, "arguments_lost", None), getattr(type(hosted.engine), name, None)
        method = Method(call, _kind(call), hosted.thread, static, _takes_meta(call), lost)
        self._methods[engine_name, name] = method
        return method

    def remove(self, name: str) -> HostedEngine | None:
        with self._lock:
            hosted = self._engines.get(name)
            if hosted is None or not hosted.made:
                return None
            del self._engines[name]
            self._methods = {k: m for k, m in self._methods.items() if k[0] != name}
        return hosted

    def close(self) -> None:
        """Lets every engine thread end after its current job."""
        with self._lock:
            threads = {hosted.thread for hosted in self._engines.values()} | ({self._shared} if self._shared else set())
        for thread in threads:
            thread.close()


def _is_current(engine: Any, name: str, found: Method) -> bool:
    """False once the method was replaced, on the class or on the engine itself."""
    return getattr(type(engine), name, None) is found.static and name not in getattr(engine, "__dict__", ())


def _takes_meta(call: Callable[..., Any]) -> bool:
    try:
        return META in inspect.signature(call).parameters
    except (TypeError, ValueError):  # some callables written in C have no signature
        return False


def _is_getter(static: Any) -> bool:
    """True for a property of any kind: looking the attribute up would run user code."""
    if not hasattr(type(static), "__get__") or callable(static) or inspect.ismemberdescriptor(static):
        return False
    return not isinstance(static, classmethod | staticmethod | partialmethod | singledispatchmethod)


def _is_method(cls: type, name: str) -> bool:
    static = inspect.getattr_static(cls, name, None)
    return callable(static) or isinstance(static, classmethod)


def _kind(call: Callable[..., Any]) -> Kind:
    call = inspect.unwrap(call)
    if inspect.isasyncgenfunction(call):
        return Kind.ASYNC_GENERATOR
    if inspect.isgeneratorfunction(call):
        return Kind.GENERATOR
    return Kind.ASYNC if inspect.iscoroutinefunction(call) else Kind.PLAIN
