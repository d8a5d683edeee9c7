"""Call is the caller's side of one request: its answer, its stream of items, its deadline."""

from __future__ import annotations

import asyncio
import copy
import time
from asyncio.events import _get_running_loop
from collections import deque
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from contextlib import suppress
from typing import Any, Protocol
from weakref import ref

from rolecall.errors import CallCancelledError, ProtocolError, RolecallError
from rolecall.transport import codec
from rolecall.transport.channel import Channel
from rolecall.transport.session.caller import OpenCall
from rolecall.transport.session.messages import Body
from rolecall.transport.waiting import Waitable


class Caller(Protocol):
    """What a call needs of the peer that made it."""

    @property
    def channel(self) -> Channel: ...

    def cancel(self, call: Call) -> None:
        """Fails the call with CallCancelledError, unless it is done, and sends a cancellation."""
        ...

    def expire(self, call: Call) -> None:
        """As `cancel`, with TimeoutError."""
        ...

    def consumed(self, call: Call) -> None:
        """The call's reader took one item of the stream."""
        ...


class Call(Waitable):
    """A pending request. Any number of threads may wait for it, and tasks of any event loop await it.

    The arguments' arrays and tensors are sent from the memory they lie in; they must not be changed until the call is
    answered. The call keeps a reference to them until then. Ctrl-C while waiting leaves the call running: ask for its
    `result()` again, or `cancel()` it.

    Attributes:
        method: Name of the method.
        timeout: Seconds that it may take; None without a limit.
        opened: Its state in the session; None before the call was made and once it is done. Only the peer uses it.
    """

    __slots__ = (
        "__weakref__",
        "_body",
        "_caller",
        "_deadline",
        "_done",
        "_error",
        "_held",
        "_ok",
        "_ready",
        "_value",
        "method",
        "opened",
        "timeout",
    )

    def __init__(self, caller: Caller, method: str, value: Any, timeout: float | None, *, streaming: bool) -> None:
        self._waiters = []
        self._held = value
        self._caller, self.method, self.timeout = caller, method, timeout
        self._deadline = None if timeout is None else time.monotonic() + timeout
        self._ready: deque[Body] | None = deque() if streaming else None  # items that have arrived
        self._done = self._ok = False
        self._error: BaseException | None = None
        self._body: Body | None = None
        self._value: Any = None
        self.opened: OpenCall[Call] | None = None

    # The user's side

    @property
    def deadline(self) -> float | None:
        """When it fails with TimeoutError, by `time.monotonic`."""
        return self._deadline

    @property
    def done(self) -> bool:
        """Whether the answer has arrived. A stream's last items may still be unread."""
        return self._done

    @property
    def cancelled(self) -> bool:
        return isinstance(self._error, CallCancelledError)

    def add_done_callback(self, told: Callable[[], object]) -> None:
        """Calls `told` once, when the answer is there: here if it is already, else on the I/O thread.

        From then on the call's timeout ends it though nobody waits for it. Not for streams.
        """
        self._waiters.append(told)
        if self._done:
            if self._leave(told):
                told()
        elif self._deadline is not None:
            loop, left, call = self._caller.channel.loop, self._deadline - time.monotonic(), ref(self)
            loop.call_soon_threadsafe(loop.call_later, left, _expire, call)  # weak: answers are not kept until then

    def wait_done(self, timeout: float | None) -> bool:
        """Blocks until the answer is there, or `timeout` seconds; says whether it is. The call goes on."""
        self._refuse_to_block_the_loop()
        return self.wait(self._is_done, None if timeout is None else time.monotonic() + timeout)

    def result(self) -> Any:
        """Blocks until the answer. Of a stream it drops unread items and returns the generator's return value.

        Raises:
            TimeoutError: The call's `timeout` passed. It was cancelled.
            RolecallError: The other side's error, or the reason why there will be no answer.
        """
        if self._ready is not None:
            for _ in self._bodies():
                pass
        elif not self._done:
            self._refuse_to_block_the_loop()
            if not self.wait(self._is_done, self._deadline):
                self._caller.expire(self)
        return self._outcome()

    def __await__(self) -> Generator[Any, None, Any]:
        return self._answer().__await__()

    def cancel(self) -> None:
        """Cancels: waiters get `CallCancelledError` at once. After the answer nothing happens."""
        self._caller.cancel(self)

    def expire(self) -> None:
        """As `cancel`, with TimeoutError."""
        self._caller.expire(self)

    def cancel_soon(self) -> None:
        """As `cancel`, on the loop; safe in a garbage collection, which may interrupt code that holds a lock."""
        with suppress(RuntimeError):  # the loop is closed, and the call failed with its peer
            self._caller.channel.loop.call_soon_threadsafe(self.cancel)

    def __iter__(self) -> Iterator[Any]:
        """The stream's items; leaving the loop early cancels the call."""
        for body in self._bodies():
            yield self._decoded(body)
        self._outcome()

    async def __aiter__(self) -> AsyncIterator[Any]:
        async for body in self._bodies_async():
            yield self._decoded(body)
        self._outcome()

    def __repr__(self) -> str:
        return f"<Call {self.method} {'done' if self._done else 'running'}>"

    async def _answer(self) -> Any:
        if self._ready is not None:
            async for _ in self._bodies_async():
                pass
        elif not self._done:
            try:
                if not await self.wait_async(self._is_done, self._caller.channel.wakers, self._deadline):
                    self._caller.expire(self)
            except asyncio.CancelledError:
                self.cancel()
                raise
        return self._outcome()

    def _refuse_to_block_the_loop(self) -> None:
        if _get_running_loop() is self._caller.channel.loop:
            raise RuntimeError(
                f"waiting for {self.method}() here would block the loop that its answer comes in on; await it"
            )

    def _is_done(self) -> bool:
        return self._done

    def _outcome(self) -> Any:
        body = self._body
        if body is not None:
            value = self._decoded(body)
            if self._ok:
                self._value = value
            else:
                self._error = value if isinstance(value, Exception) else _not_an_error(value)
            self._body = None  # last: a second thread that finds None must find the decoded value
        if self._error is not None:
            raise fresh(self._error)
        return self._value

    def _decoded(self, body: Body) -> Any:
        return codec.decode(body[0], body[1], context=self._caller.channel.context)

    # Streams

    def _bodies(self) -> Iterator[Body]:
        ready = self._stream()
        self._refuse_to_block_the_loop()
        try:
            while True:
                if not self.wait(self._has_next, self._deadline):
                    self._caller.expire(self)
                if not ready:
                    return
                yield self._next_body(ready)
        finally:
            self.cancel()

    async def _bodies_async(self) -> AsyncIterator[Body]:
        ready = self._stream()
        try:
            while True:
                if not await self.wait_async(self._has_next, self._caller.channel.wakers, self._deadline):
                    self._caller.expire(self)
                if not ready:
                    return
                yield self._next_body(ready)
        finally:
            self.cancel()

    def _stream(self) -> deque[Body]:
        if self._ready is None:
            raise TypeError(f"{self.method} was requested without streaming=True")
        return self._ready

    def _has_next(self) -> bool:
        return bool(self._ready) or self._done

    def _next_body(self, ready: deque[Body]) -> Body:
        body = ready.popleft()
        self._caller.consumed(self)
        return body

    # The peer's side

    def answered(self, ok: bool, body: Body) -> None:
        """Completes the call. Called once, by the peer, unless `failed` is."""
        self._ok, self._body = ok, body
        self.opened = self._held = None
        self._done = True
        if self._waiters:
            self.wake()

    def arrived(self, bodies: list[Body]) -> None:
        """Hands over the next items of the stream."""
        if self._ready is not None:
            self._ready.extend(bodies)
            self.wake()

    def failed(self, error: BaseException) -> list[Body]:
        """Completes the call without an answer. Called once, by the peer; returns the items that nobody has read."""
        self._error = error
        unread: list[Body] = []
        while self._ready:
            unread.append(self._ready.popleft())
        self._complete()
        return unread

    def _complete(self) -> None:
        self.opened = self._held = None
        self._done = True
        self.wake()


def _expire(known: ref[Call]) -> None:
    call = known()
    if call is not None and not call.done:
        call.expire()


def fresh(error: BaseException) -> BaseException:
    """A copy to raise where several threads may raise the same error; one exception holds only one traceback."""
    if not isinstance(error, RolecallError):
        return error
    again = copy.copy(error)
    again.__dict__.update(error.__dict__)
    again.__cause__ = error.__cause__
    return again


def _not_an_error(value: Any) -> ProtocolError:
    return ProtocolError("a failed call whose error is none", type(value).__name__)
