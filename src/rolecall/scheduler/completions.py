"""Calls over a role with a bound on how many are under way, given as they end."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from rolecall.errors import WorkerConfigurationError, WorkerFailedError
from rolecall.scheduler.calls import PendingCall, check_arguments

if TYPE_CHECKING:
    from rolecall.scheduler.roles import AnyMethod, RoleWorker

Item = tuple[int, Sequence[Any]]


@dataclass(frozen=True, eq=False)
class Completion:
    """A call that has ended.

    Attributes:
        index: The place of its arguments among all.
        arguments: What the method was called with.
        worker: Who was asked. It may be dead.
    """

    index: int
    arguments: Sequence[Any]
    worker: RoleWorker
    call: PendingCall[Any] = field(repr=False)
    _again: Callable[[Item], None] = field(repr=False)

    def result(self) -> Any:
        """The method's result. Errors as `PendingCall.result`."""
        return self.call.result()

    def resubmit(self) -> None:
        """Calls the method with these arguments once more, on whichever worker has the fewest to do then."""
        self._again((self.index, self.arguments))


class Completions:
    """The calls of `Role.as_completed`, to be iterated once, by `for` or by `async for`. Leaving the loop cancels them.

    Args:
        workers: The living ones among them are called.
        check: Raises why none can.
    """

    def __init__(
        self,
        workers: Sequence[RoleWorker],
        check: Callable[[], None],
        method: AnyMethod,
        arguments: Iterable[Sequence[Any]],
        kwargs: dict[str, Any],
        in_flight: int,
    ) -> None:
        if in_flight < 1:
            raise WorkerConfigurationError("bad in_flight", in_flight, "use 1 or more")
        self._workers, self._check, self._method, self._kwargs = workers, check, method, kwargs
        self._items, self._again = enumerate(arguments), deque[Item]()
        self._in_flight, self._open = in_flight, set[Completion]()

    def __iter__(self) -> Iterator[Completion]:
        done: SimpleQueue[Completion] = SimpleQueue()
        try:
            while self._fill(done.put):
                yield self._ended(done.get(), done.put)
        finally:
            self._cancel()

    async def __aiter__(self) -> AsyncIterator[Completion]:
        loop, done = asyncio.get_running_loop(), asyncio.Queue[Completion]()

        def tell(ended: Completion) -> None:
            loop.call_soon_threadsafe(done.put_nowait, ended)

        try:
            while self._fill(tell):
                yield self._ended(await done.get(), tell)
        finally:
            self._cancel()

    def _fill(self, tell: Callable[[Completion], None]) -> bool:
        """Sends as many calls as there is room for; False when all is done. Raises when nobody is left for the rest."""
        self._send(tell)
        while not self._open and (item := self._next()) is not None:
            self._again.appendleft(item)
            self._check()
            self._send(tell)
        return bool(self._open)

    def _ended(self, ended: Completion, tell: Callable[[Completion], None]) -> Completion:
        """Its place is filled before the caller looks at it, which may take a while."""
        self._open.discard(ended)
        self._send(tell)
        return ended

    def _send(self, tell: Callable[[Completion], None]) -> None:
        while len(self._open) < self._in_flight and (workers := [w for w in self._workers if w.alive]):
            if (item := self._next()) is None:
                return
            index, arguments = item
            check_arguments("as_completed", self._method, arguments)
            load = Counter(ended.worker.id for ended in self._open)
            worker = min(workers, key=lambda w: load[w.id])
            try:
                call = worker.submit(self._method, *arguments, **self._kwargs)
            except WorkerFailedError:  # a moment ago
                self._again.appendleft(item)
                continue
            sent = Completion(index, arguments, worker, call, self._again.append)
            self._open.add(sent)
            call.add_done_callback(partial(_tell, tell, sent))

    def _next(self) -> Item | None:
        return self._again.popleft() if self._again else next(self._items, None)

    def _cancel(self) -> None:
        for sent in list(self._open):
            sent.call.cancel()


def _tell(tell: Callable[[Completion], None], sent: Completion, call: object) -> None:
    tell(sent)
