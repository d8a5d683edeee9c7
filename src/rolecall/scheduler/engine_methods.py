"""An engine's methods by their functions, as `Trainer.train`: a type checker then knows arguments and results."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterable, Awaitable, Callable, Iterable
from functools import partial
from typing import Any, Concatenate, ParamSpec, TypeVar

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


class EngineView:
    """The engine of a worker, or of all workers of a role, with the methods of its class, called as if it were here."""

    def __init__(self, callee: object, engine: type) -> None:
        self._callee, self._engine = callee, engine

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = inspect.unwrap(getattr(self._engine, name))
        if not callable(method):
            raise AttributeError(f"{name!r} of {self._engine.__name__} is no method; only methods can be called")
        if inspect.iscoroutinefunction(method):
            how = "acall"
        elif inspect.isasyncgenfunction(method):
            how = "astream"
        else:
            how = "stream" if inspect.isgeneratorfunction(method) else "call"
        return partial(getattr(self._callee, how), name)
