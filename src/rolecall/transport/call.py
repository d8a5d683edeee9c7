"""Call is the caller's side of one request: its answer, its stream of items, its deadline."""

from __future__ import annotations

import asyncio
import copy
import time
from asyncio.events import _get_running_loop
from collections.abc import AsyncIterator, Generator, Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from rolecall.errors import ProtocolError, RolecallError
from rolecall.transport import codec
from rolecall.transport.waiting import Waitable

if TYPE_CHECKING:
    from rolecall.transport.link import Link
    from rolecall.transport.peer import Peer

Body = tuple[bytes, list[memoryview]]


class Inflow:
    """The items of one stream on their way in: put in order, each counted once."""

    __slots__ = ("arrived", "consumed", "credited", "early", "final", "probed_at", "ready")

    def __init__(self) -> None:
        self.arrived = 0  # items below this index have come, all of them
        self.consumed = 0
        self.credited = 0
        self.early: dict[int, Body] = {}  # items behind a gap; at most a window's worth
        self.ready: list[Body] = []
        self.final: tuple[int, bool, Body] | None = None  # number of items, and the answer that comes after them
        self.probed_at = 0.0

    def take_unread(self) -> list[Body]:
        """Empties it."""
        unread = [*self.ready, *self.early.values()]
        self.ready.clear()
        self.early.clear()
        return unread

    def put(self, index: int, body: Body, window: int) -> bool:
        """Takes an item in; False when there is a gap before it."""
        if self.arrived <= index < self.consumed + 2 * window:
            self.early.setdefault(index, body)
        while (item := self.early.pop(self.arrived, None)) is not None:
            self.arrived += 1
            self.ready.append(item)
        return not self.early


class Call(Waitable):
    """A request under way. Any thread may wait for it, any event loop may await it, several at once.

    The arguments' arrays and tensors are sent from the memory they lie in; they must not be changed until the call is
    answered. Until then they are held here, and the call by its peer, whoever else lets go of them. Giving up waiting
    with Ctrl-C leaves the call running: ask for its `result()` again, or `cancel()` it.
    """

    __slots__ = (
        "_body",
        "_deadline",
        "_done",
        "_error",
        "_held",
        "_inflow",
        "_ok",
        "_peer",
        "_value",
        "method",
        "parts",
        "probe_at",
        "probe_wait",
        "sent",
        "seq",
        "size",
        "timeout",
    )

    def __init__(self, peer: Peer, method: str, value: Any, timeout: float | None, *, streaming: bool) -> None:
        self._waiters = []
        self._held = value
        self._peer, self.seq, self.method, self.timeout = peer, -1, method, timeout
        self._deadline = None if timeout is None else time.monotonic() + timeout
        self._inflow = Inflow() if streaming else None
        self._done = self._ok = False
        self._error: BaseException | None = None
        self._body: Body | None = None
        self._value: Any = None
        self.parts: Sequence[bytes | memoryview] | None = None  # kept until the callee has certainly taken the call
        self.size = 0
        self.sent: tuple[Link, int] | None = None  # the link it was last sent on, and the position behind it
        self.probe_at = self.probe_wait = 0.0

    # The user's side

    @property
    def done(self) -> bool:
        """Whether the answer is there (a stream's answer may be there before its last items are read)."""
        return self._done

    def result(self) -> Any:
        """Blocks until the answer; of a stream, drops the items not read and returns the generator's own value.

        Raises:
            TimeoutError: The call's `timeout` passed. The callee is told to give up.
            RolecallError: Whatever the other side failed with, or what ended the call here.
        """
        if self._inflow is not None:
            for _ in self._bodies():
                pass
        elif not self._done:
            self._refuse_to_block_the_loop()
            if not self.wait(self._is_done, self._deadline):
                self._peer._expire(self)
        return self._outcome()

    def __await__(self) -> Generator[Any, None, Any]:
        return self._answer().__await__()

    def cancel(self) -> None:
        """Gives up: waiters get `CallCancelledError` at once, the callee is told. Nothing happens after the answer."""
        self._peer._cancel(self)

    def cancel_soon(self) -> None:
        """As `cancel`, on the loop: may be called in a garbage collection, whatever lock it has interrupted."""
        with suppress(RuntimeError):  # the loop is closed, and the call failed with its peer
            self._peer.loop.call_soon_threadsafe(self.cancel)

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
        return f"<Call {self.seq} {self.method} {'done' if self._done else 'running'}>"

    async def _answer(self) -> Any:
        if self._inflow is not None:
            async for _ in self._bodies_async():
                pass
        elif not self._done:
            try:
                if not await self.wait_async(self._is_done, self._peer._wakers, self._deadline):
                    self._peer._expire(self)
            except asyncio.CancelledError:
                self.cancel()
                raise
        return self._outcome()

    def _refuse_to_block_the_loop(self) -> None:
        if _get_running_loop() is self._peer.loop:
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
            self._body = None  # last: a second thread that finds none must find what it was decoded to
        if self._error is not None:
            raise fresh(self._error)
        return self._value

    def _decoded(self, body: Body) -> Any:
        return codec.decode(body[0], body[1], context=self._peer.context)

    # Streams

    def _bodies(self) -> Iterator[Body]:
        inflow = self._stream()
        self._refuse_to_block_the_loop()
        try:
            while True:
                if not self.wait(self._has_next, self._deadline):
                    self._peer._expire(self)
                if not inflow.ready:
                    return
                yield self._next_body(inflow)
        finally:
            self.cancel()

    async def _bodies_async(self) -> AsyncIterator[Body]:
        inflow = self._stream()
        try:
            while True:
                if not await self.wait_async(self._has_next, self._peer._wakers, self._deadline):
                    self._peer._expire(self)
                if not inflow.ready:
                    return
                yield self._next_body(inflow)
        finally:
            self.cancel()

    def _stream(self) -> Inflow:
        if self._inflow is None:
            raise TypeError(f"{self.method} was requested without streaming=True")
        return self._inflow

    def _has_next(self) -> bool:
        return bool(self._stream().ready) or self._done

    def _next_body(self, inflow: Inflow) -> Body:
        body = inflow.ready.pop(0)
        inflow.consumed += 1
        if inflow.consumed - inflow.credited >= max(1, self._peer.window // 2):
            inflow.credited = inflow.consumed
            self._peer._credit(self.seq, inflow.consumed)
        return body

    # The peer's side: each of these is called once, by whoever took the call out of the peer's table

    def _answered(self, ok: bool, body: Body) -> None:
        self._ok = ok
        self._body = body
        self._complete()

    def _failed(self, error: BaseException) -> None:
        self._error = error
        self._complete()

    def _complete(self) -> None:
        self.parts = self._held = None
        self._done = True
        self.wake()


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
