"""RoleWorker: one worker of a role, as its user sees it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, Unpack, cast, overload

from rolecall.scheduler.calls import CallOptions, Options, PendingCall
from rolecall.scheduler.engine_methods import (
    AnyMethod,
    AsyncMethod,
    EngineClass,
    EngineView,
    GeneratorMethod,
    Method,
    P,
    R,
    name_of,
)
from rolecall.scheduler.gathering import Sent, agathered, gathered, sent
from rolecall.scheduler.processes import log_problems
from rolecall.transport.peer import Peer
from rolecall.types import Worker

if TYPE_CHECKING:
    from rolecall.scheduler.scheduler import Scheduler

E = TypeVar("E")


class Callee:
    """What a role and a worker of it have in common: words for those who take it for the engine."""

    if not TYPE_CHECKING:  # a type checker would take any name for one of theirs

        def __getattr__(self, name: str) -> Any:
            hint = "" if name.startswith("_") else f"; a method of its engine is called by .call({name!r}, ...)"
            raise AttributeError(f"a {type(self).__name__} has no {name!r}{hint}")


class RoleWorker(Callee):
    """One worker of a role."""

    def __init__(self, scheduler: Scheduler, worker_id: str, options: CallOptions) -> None:
        self._scheduler, self.id, self._options = scheduler, worker_id, options

    def __repr__(self) -> str:
        return f"RoleWorker({self.id!r})"

    @property
    def worker(self) -> Worker:
        """Where it is. Raises WorkerFailedError when it died."""
        return self._scheduler.calls.worker(self.id)

    @property
    def peer(self) -> Peer:
        """The conversation with it, which `rolecall.remotize(x, worker=...)` asks for. Raises as `worker`."""
        return self._scheduler.calls.peer(self.id)

    @property
    def alive(self) -> bool:
        """Whether it has not died."""
        return self._scheduler.calls.is_alive(self.id)

    def with_options(self, **options: Unpack[Options]) -> RoleWorker:
        """As `Role.with_options`."""
        return RoleWorker(self._scheduler, self.id, self._options.changed(options))

    @overload
    def create_engine(self, engine: str, *args: Any, **kwargs: Any) -> None: ...
    @overload
    def create_engine(self, engine: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> None: ...
    def create_engine(self, engine: EngineClass, *args: Any, **kwargs: Any) -> None:
        """Makes an engine here."""
        gathered([self.submit_engine(engine, args, kwargs)])

    def destroy_engine(self) -> None:
        """As `Role.destroy_engine`."""
        log_problems(self.id, gathered([self.submit_destroy()])[0])

    def submit_destroy(self) -> PendingCall[Any]:
        return self._scheduler.calls.destroy_engine(self.id, self._options)

    def engine(self, engine: type[E]) -> E:
        """Its engine with the methods of the class, typed: `actors[0].engine(Trainer).train(3)`.

        Methods that are `async` are awaited, generators iterated, and others waited for. It is no such object: it has
        nothing but methods.
        """
        return cast(E, EngineView(self, engine))

    @overload
    def call(self, method: AsyncMethod[P, R], *args: P.args, **kwargs: P.kwargs) -> R: ...
    @overload
    def call(self, method: Method[P, R], *args: P.args, **kwargs: P.kwargs) -> R: ...
    @overload
    def call(self, method: str, *args: Any, **kwargs: Any) -> Any: ...
    def call(self, method: AnyMethod, *args: Any, **kwargs: Any) -> Any:
        """Calls a method, named or as `Trainer.train`, and waits for its result. Ctrl-C gives the call up."""
        return gathered(self._sent(method, args, kwargs), return_errors=self._options.return_errors)[0]

    @overload
    async def acall(self, method: AsyncMethod[P, R], *args: P.args, **kwargs: P.kwargs) -> R: ...
    @overload
    async def acall(self, method: Method[P, R], *args: P.args, **kwargs: P.kwargs) -> R: ...
    @overload
    async def acall(self, method: str, *args: Any, **kwargs: Any) -> Any: ...
    async def acall(self, method: AnyMethod, *args: Any, **kwargs: Any) -> Any:
        """The same, without blocking the event loop."""
        return (await agathered(self._sent(method, args, kwargs), return_errors=self._options.return_errors))[0]

    @overload
    def submit(self, method: AsyncMethod[P, R], *args: P.args, **kwargs: P.kwargs) -> PendingCall[R]: ...
    @overload
    def submit(self, method: Method[P, R], *args: P.args, **kwargs: P.kwargs) -> PendingCall[R]: ...
    @overload
    def submit(self, method: str, *args: Any, **kwargs: Any) -> PendingCall[Any]: ...
    def submit(self, method: AnyMethod, *args: Any, **kwargs: Any) -> PendingCall[Any]:
        """Sends the call and returns its future at once."""
        return self._scheduler.calls.submit(self.id, name_of(method), args, kwargs, self._options)

    def submit_engine(self, engine: EngineClass, args: Sequence[Any], kwargs: dict[str, Any]) -> PendingCall[Any]:
        return self._scheduler.calls.create_engine(self.id, engine, args, kwargs, self._options)

    @overload
    def stream(self, method: GeneratorMethod[P, R], *args: P.args, **kwargs: P.kwargs) -> Iterator[R]: ...
    @overload
    def stream(self, method: str, *args: Any, **kwargs: Any) -> Iterator[Any]: ...
    def stream(self, method: AnyMethod, *args: Any, **kwargs: Any) -> Iterator[Any]:
        """Iterates over what a generator method yields, as it yields it. The call is sent at once.

        It is cancelled when the iterator is closed or dropped, read or not.
        """
        return iter(self._scheduler.calls.stream(self.id, name_of(method), args, kwargs, self._options))

    @overload
    def astream(self, method: GeneratorMethod[P, R], *args: P.args, **kwargs: P.kwargs) -> AsyncIterator[R]: ...
    @overload
    def astream(self, method: str, *args: Any, **kwargs: Any) -> AsyncIterator[Any]: ...
    def astream(self, method: AnyMethod, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        """The same for `async for`."""
        return aiter(self._scheduler.calls.stream(self.id, name_of(method), args, kwargs, self._options))

    def restart(self, *, engines: bool = True) -> None:
        """Starts it again in its slot, whether it died or not. See `Scheduler.restart_worker`."""
        self._scheduler.restart_worker(self.id, engines=engines)

    async def arestart(self, *, engines: bool = True) -> None:
        """The same, without blocking the event loop."""
        await asyncio.to_thread(self.restart, engines=engines)

    def _sent(self, method: AnyMethod, args: Sequence[Any], kwargs: dict[str, Any]) -> list[Sent]:
        if not self._options.return_errors:
            return [self.submit(method, *args, **kwargs)]
        return [sent(lambda w: w.submit(method, *args, **kwargs), self)]

    def stacks(self) -> str:
        """The Python stacks of its threads, read from outside."""
        return self._scheduler.calls.stacks(self.id)
