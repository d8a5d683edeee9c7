"""An engine's methods by their functions, as `Trainer.train`: a type checker then knows arguments and results."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterable, Awaitable, Callable, Iterable
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from rolecall.errors import WorkerConfigurationError

P = ParamSpec("P")
R = TypeVar("R")
Method = Callable[Concatenate[Any, P], R]  # its first parameter is `self`
AsyncMethod = Callable[Concatenate[Any, P], Awaitable[R]]
GeneratorMethod = Callable[Concatenate[Any, P], Iterable[R] | AsyncIterable[R]]
AnyMethod = str | Callable[..., Any]
EngineClass = str | Callable[..., object]  # a class, as a call of which a type checker knows its parameters


def name_of(method: AnyMethod) -> str:
    """The name under which an engine's method is called."""
    if isinstance(method, str):
        return method
    if inspect.isfunction(method):
        return method.__name__
    raise WorkerConfigurationError("no method of an engine", method, "give its name, or its function as Trainer.train")


class Caller(Protocol):
    """A worker that can be called."""

    def call(self, method: str, *args: Any, **kwargs: Any) -> Any: ...
    def acall(self, method: str, *args: Any, **kwargs: Any) -> Any: ...
    def stream(self, method: str, *args: Any, **kwargs: Any) -> Any: ...
    def astream(self, method: str, *args: Any, **kwargs: Any) -> Any: ...


class EngineView:
    """A worker's engine with the methods of its class, called as if it were here."""

    def __init__(self, worker: Caller, engine: type) -> None:
        self._worker, self._engine = worker, engine

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = inspect.unwrap(getattr(self._engine, name))
        if not callable(method):
            raise AttributeError(f"{name!r} of {self._engine.__name__} is no method; only methods can be called")
        worker = self._worker
        if inspect.iscoroutinefunction(method):
            how = worker.acall
        elif inspect.isasyncgenfunction(method):
            how = worker.astream
        else:
            how = worker.stream if inspect.isgeneratorfunction(method) else worker.call
        return lambda *args, **kwargs: how(name, *args, **kwargs)
