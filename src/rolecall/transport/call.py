"""Call is the caller's side of one request: its answer, its stream of items, its deadline."""

from __future__ import annotations

import asyncio
import copy
import time
from asyncio.events import _get_running_loop
from collections import deque
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from contextlib import suppress
from itertools import count
from typing import Any, Protocol
from weakref import ref

from rolecall.errors import CallCancelledError, ProtocolError, RolecallError
from rolecall.transport import codec
from rolecall.transport.channel import Channel
from rolecall.transport.session.caller import OpenCall, Reason
from rolecall.transport.session.messages import Body
from rolecall.transport.waiting import Waitable

TOLD_AT_ONCE = 4  # items of a stream that were read


class Caller(Protocol):
    """What a call needs of the peer that made it."""

    @property
    def channel(self) -> Channel: ...
    def abandon(self, call: Call, reason: Reason) -> None: ...
    def consumed(self, call: Call, total: int) -> None: ...


class Call(Waitable):
    """A pending request. Any number of threads may wait for it, and tasks of any event loop await it.

    The arguments' arrays and tensors are sent from the memory they lie in; they must not be changed until the call is
    answered. The call keeps a reference to them until then. Ctrl-C while waiting leaves the call running: ask for its
    `result()` again, or `cancel()` it.

    Attributes:
        method: Name of the method.
        timeout: Seconds that it may take; None without a limit.
        deadline: When it fails with TimeoutError, by `time.monotonic`.
        done: Whether the answer has arrived. A stream's last items may still be unread.
        opened: Its state in the session; None before the call was made and once it is done. Only the peer uses it.
    """

    __slots__ = (
        "__weakref__",
        "_body",
        "_caller",
        "_held",
        "_kind",
        "_ok",
        "_ready",
        "_result",
        "_taken",
        "deadline",
        "done",
        "method",
        "opened",
        "timeout",
    )

    def __init__(
        self, caller: Caller, method: str, value: Any, timeout: float | None, kind: Any, *, streaming: bool
    ) -> None:
        self._waiters = []
        self._held = value
        self._caller, self.method, self.timeout = caller, method, timeout
        self._kind = kind
        self.deadline = None if timeout is None else time.monotonic() + timeout
        self._ready: deque[Body] | None = deque() if streaming else None  # items that have arrived
        self._taken = count(1)  # of these
        self.done = self._ok = False
        self._body: Body | None = None  # of the answer, until it is decoded
        self._result: Any = None  # the value or, unless `_ok`, the error
        self.opened: OpenCall[Call] | None = None

    # The user's side

    @property
    def cancelled(self) -> bool:
        return not self._ok and isinstance(self._result, CallCancelledError)

    def add_done_callback(self, told: Callable[[], object]) -> None:
        """Calls `told` once, when the answer is there: here if it is already, else on the I/O thread.

        From then on the call's timeout ends it though nobody waits for it. Not for streams.
        """
        self._waiters.append(told)
        if self.done:
            if self._leave(told):
                told()
        elif self.deadline is not None:
            loop, left, call = self._caller.channel.loop, self.deadline - time.monotonic(), ref(self)
            loop.call_soon_threadsafe(loop.call_later, left, _expire, call)  # weak: answers are not kept until then

    def wait_done(self, timeout: float | None) -> bool:
        """Blocks until the answer is there, or `timeout` seconds; says whether it is. The call goes on."""
        self._refuse_to_block_the_loop()
        return self.wait(self._has_next, None if timeout is None else time.monotonic() + timeout)

    def result(self) -> Any:
        """Blocks until the answer. Of a stream it drops unread items and returns the generator's return value.

        Raises:
            TimeoutError: The call's `timeout` passed. It was cancelled.
            RolecallError: The other side's error, or the reason why there will be no answer.
        """
        if self._ready is not None:
            for _ in self._bodies():
                pass
        elif not self.done:
            self._refuse_to_block_the_loop()
            if not self.wait(self._has_next, self.deadline):
                self.expire()
        return self._outcome()

    def __await__(self) -> Generator[Any, None, Any]:
        return self._answer().__await__()

    def cancel(self) -> None:
        """Cancels: waiters get `CallCancelledError` at once. After the answer nothing happens."""
        self._caller.abandon(self, Reason.CANCELLED)

    def expire(self) -> None:
        """As `cancel`, with TimeoutError."""
        self._caller.abandon(self, Reason.EXPIRED)

    def cancel_soon(self) -> None:
        """As `cancel`, on the loop; safe in a garbage collection, which may interrupt code that holds a lock."""
        with suppress(RuntimeError):  # the loop is closed, and the call failed with its peer
            self._caller.channel.loop.call_soon_threadsafe(self.cancel)

    def __iter__(self) -> Iterator[Any]:
        """The stream's items; leaving the loop early cancels the call."""
        for body in self._bodies():
            yield self._decoded(body, self._kind)
        self._outcome()

    async def __aiter__(self) -> AsyncIterator[Any]:
        async for body in self._bodies_async():
            yield self._decoded(body, self._kind)
        self._outcome()

    def __repr__(self) -> str:
        return f"<Call {self.method} {'done' if self.done else 'running'}>"

    async def _answer(self) -> Any:
        if self._ready is not None:
            async for _ in self._bodies_async():
                pass
        elif not self.done:
            try:
                if not await self.wait_async(self._has_next, self.deadline):
                    self.expire()
            except asyncio.CancelledError:
                self.cancel()
                raise
        return self._outcome()

    def _refuse_to_block_the_loop(self) -> None:
        if _get_running_loop() is self._caller.channel.loop:
            raise RuntimeError(
                f"waiting for {self.method}() here would block the loop that its answer comes in on; await it"
            )

    def _outcome(self) -> Any:
        body = self._body
        if body is not None:
            value = self._decoded(body, self._kind if self._ok and self._ready is None else None)
            if not self._ok and not isinstance(value, Exception):
                value = ProtocolError("a failed call whose error is none", type(value).__name__)
            self._result = value
            self._body = None  # last: a second thread that finds None must find the decoded value
        if not self._ok:
            raise fresh(self._result)
        return self._result

    def _decoded(self, body: Body, kind: Any) -> Any:
        if kind is not None:
            return codec.decode_message(kind, body[0], body[1], self._caller.channel.name)
        return codec.decode(body[0], body[1], context=self._caller.channel.context)

    # Streams

    def _bodies(self) -> Iterator[Body]:
        ready = self._stream()
        self._refuse_to_block_the_loop()
        try:
            while (body := self._next(ready, self.wait(self._has_next, self.deadline))) is not None:
                yield body
        finally:
            self.cancel()

    async def _bodies_async(self) -> AsyncIterator[Body]:
        ready = self._stream()
        try:
            while (body := self._next(ready, await self.wait_async(self._has_next, self.deadline))) is not None:
                yield body
        finally:
            self.cancel()

    def _stream(self) -> deque[Body]:
        if self._ready is None:
            raise TypeError(f"{self.method} was requested without streaming=True")
        return self._ready

    def _has_next(self) -> bool:
        return bool(self._ready) or self.done

    def _next(self, ready: deque[Body], in_time: bool) -> Body | None:
        """Takes the next item; None at the stream's end."""
        if not in_time:
            self.expire()
        if not ready:
            return None
        body = ready.popleft()
        taken = next(self._taken)
        if not ready or not taken % TOLD_AT_ONCE:
            self._caller.consumed(self, taken)
        return body

    # The peer's side

    def answered(self, ok: bool, body: Body) -> None:
        """Completes the call. Called once, by the peer, unless `failed` is."""
        self._ok, self._body = ok, body
        self._complete()

    def arrived(self, body: Body) -> None:
        """Hands over the next item of the stream."""
        if self._ready is not None:
            self._ready.append(body)
            self.wake()

    def failed(self, error: BaseException) -> list[Body]:
        """Completes the call without an answer. Called once, by the peer; returns the items that nobody has read."""
        self._result = error
        unread: list[Body] = []
        while self._ready:
            unread.append(self._ready.popleft())
        self._complete()
        return unread

    def _complete(self) -> None:
        self.opened = self._held = None
        self.done = True
        self.wake()


def _expire(known: ref[Call]) -> None:
    if (call := known()) is not None:
        call.expire()


def fresh(error: BaseException) -> BaseException:
    """A copy to raise where several threads may raise the same error; one exception holds only one traceback."""
    if not isinstance(error, RolecallError):
        return error
    again = copy.copy(error)
    again.__dict__.update(error.__dict__)
    again.__cause__ = error.__cause__
    return again
