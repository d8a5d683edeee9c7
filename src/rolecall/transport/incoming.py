"""Incoming is the callee's side of one request: what was asked, what was answered, and the record of both."""

from __future__ import annotations

import asyncio
import time
from asyncio.events import _get_running_loop
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from rolecall.errors import CallCancelledError, EncodeError, ProtocolError, RolecallError
from rolecall.transport import codec
from rolecall.transport.frames import pack
from rolecall.transport.session import messages
from rolecall.transport.waiting import Waitable

if TYPE_CHECKING:
    from rolecall.transport.link import Link
    from rolecall.transport.peer import Peer

Parts = Sequence[bytes | memoryview]

LENT_FROM = 1 << 20  # results from here on are not copied; their owner waits until they have arrived
LENT_S = 30.0  # how long it waits for a caller that reads nothing


class Incoming(Waitable):
    """One request that this side has taken. It is handed out exactly once for each call id.

    Answer it with `finish` or `fail`, from any thread; the first answer counts.

    Attributes:
        method: What is asked for.
        meta: Options of the call, plain values.
        streaming: Whether the caller takes items (`emit`).
        cancelled: Whether the caller has given up.
    """

    __slots__ = (
        "_body",
        "_buffers",
        "_callbacks",
        "_consumed",
        "_emitted",
        "_items",
        "_peer",
        "_window",
        "cancelled",
        "lent",
        "meta",
        "method",
        "reply",
        "sent",
        "seq",
        "settled",
        "streaming",
    )

    def __init__(self, peer: Peer, request: messages.Request, buffers: list[memoryview]) -> None:
        self._waiters = []
        self._peer, self.seq, self.method, self.meta = peer, request.seq, request.method, request.meta
        self.streaming = request.kind == messages.STREAM
        self._body: bytes | None = request.body
        self._buffers = buffers
        self._window = max(1, request.window)
        self._callbacks: list[Callable[[], object]] = []
        self._items: dict[int, Parts] = {}  # sent and not yet consumed
        self._emitted = self._consumed = 0
        self.cancelled = False
        self.settled = False  # the reply has arrived, or nobody waits for it any more
        self.reply: Parts | None = None
        self.sent: tuple[Link, int] | None = None  # the link its last frame was sent on, and the position behind it
        self.lent: Link | None = None  # the reply lies in memory of the engine, lent for this link alone

    def args(self) -> Any:
        """Decodes the request's value, once; the received bytes are let go.

        Raises:
            CodecError: They are not an encoded value.
        """
        return self.received().value()

    def received(self) -> codec.Received:
        """As `args`, up to the value, so that something else may be put in the places of what it refers to."""
        if self._body is None:
            raise ProtocolError("the arguments of a call were taken twice", self.method)
        body, buffers = self._body, self._buffers
        self._body, self._buffers = None, []
        return codec.Received(body, buffers, context=self._peer.context)

    def on_cancel(self, fn: Callable[[], object]) -> None:
        """Calls `fn` on the loop's thread when the caller gives up; at once, here, when it already has."""
        self._callbacks.append(fn)
        if self.cancelled:
            self._run_callbacks()

    def finish(self, value: Any, *, stable: bool = False) -> None:
        """Answers with `value`, encoded in this thread. What cannot be encoded is answered with an EncodeError.

        Arrays and tensors of more than 1 MiB are not copied: a thread waits here until they have arrived, so that an
        engine may change them afterwards. On an event loop, where waiting is not possible, they are copied.

        Args:
            stable: The value's memory will never change; neither copy nor wait.
        """
        try:
            encoded = codec.encode(value, "result")
            self._settle(True, encoded.header, encoded.buffers, stable)
        except Exception as e:  # an object's own hooks run while it is encoded and may raise anything
            self.fail(e)

    def fail(self, exc: BaseException) -> None:
        """Answers with an error: ours as themselves, others as far as their type travels."""
        error = CallCancelledError(self._peer.name, self.method) if isinstance(exc, asyncio.CancelledError) else exc
        try:
            encoded = codec.encode(error, "error")
            self._settle(False, encoded.header, encoded.buffers, False)
        except Exception as e:  # as above; the second attempt has only text in it
            hint = f"it said: {error}" if isinstance(e, RolecallError) else f"encoding it raised {e!r}"
            encoded = codec.encode(EncodeError("error", type(error).__qualname__, hint), "error")
            self._settle(False, encoded.header, encoded.buffers, False)

    async def emit(self, item: Any) -> None:
        """Sends one item of the stream; waits while the caller's window is full.

        Raises:
            CallCancelledError: The caller has given up.
            EncodeError: The item does not travel; the stream may go on.
        """
        await self.wait_async(self._has_room, self._peer._wakers)
        self._push(item)

    def emit_blocking(self, item: Any) -> None:
        """As `emit`, for a thread."""
        self.wait(self._has_room)
        self._push(item)

    def __repr__(self) -> str:
        return f"<Incoming {self.seq} {self.method} {'answered' if self.reply is not None else 'running'}>"

    def _has_room(self) -> bool:
        return self.cancelled or self.reply is not None or self._emitted - self._consumed < self._window

    def _push(self, item: Any) -> None:
        if not self.streaming:
            raise ProtocolError("items of a call whose caller wants none", self.method)
        if self.cancelled or self.reply is not None:
            raise CallCancelledError(self._peer.name, self.method)
        encoded = codec.encode(item, f"item[{self._emitted}]")
        header = messages.encode(messages.Item(self.seq, self._emitted, encoded.header))
        parts = pack(header, [frozen(b) for b in encoded.buffers])
        self._items[self._emitted] = parts
        self._emitted += 1
        self.sent = self._peer._send(parts)

    def _settle(self, ok: bool, header: bytes, buffers: Sequence[memoryview], stable: bool) -> None:
        link = self._peer._link
        lent = not stable and link is not None and _may_lend(buffers)
        if not stable and not lent:
            buffers = [frozen(b) for b in buffers]
        message = messages.encode(messages.Reply(self.seq, ok, self._emitted, header))
        parts = pack(message, buffers)
        self.lent = link if lent else None
        if not self._peer._records.keep_reply(self, parts):
            return
        if link is not None:
            self.sent = link, link.send(parts)
        if lent:
            self._wait_until_received(link, message, buffers)
        elif len(parts) > 1 or len(parts[0]) > LENT_FROM:
            self._peer._wait_for_room()

    def _wait_until_received(self, link: Link | None, message: bytes, buffers: Sequence[memoryview]) -> None:
        """Keeps the lender here while its memory is being sent; when that fails, the record gets a copy of its own."""
        received, written = False, -1
        while not received and link is not None and written != link.written:
            written = link.written  # a slow reader has its time as long as it reads at all
            received = self.wait(lambda: self.settled or link is not self._peer._link, time.monotonic() + LENT_S)
        if self.settled:
            return
        if not received and link is not None:
            link.abort(ProtocolError("a result was not read within (s)", LENT_S))
            self.wait(lambda: link.closed or self.settled)
        parts = pack(message, [frozen(b) for b in buffers])
        if self._peer._records.replace_reply(self, parts):
            self.sent = self._peer._send(parts)

    # The peer's side, on the loop's thread

    def _cancel(self) -> None:
        if not self.cancelled:
            self.cancelled = True
            self._run_callbacks()
            self.wake()

    def _run_callbacks(self) -> None:
        while self._callbacks:
            try:
                fn = self._callbacks.pop()
            except IndexError:  # another thread took the last one
                return
            try:
                fn()
            except Exception as e:  # the engine's own code; the connection and the other callbacks go on
                self._peer._report(f"a cancel callback of {self.method}", e)

    def _credit(self, consumed: int) -> None:
        for index in range(self._consumed, min(consumed, self._emitted)):
            self._items.pop(index, None)
        self._consumed = max(self._consumed, min(consumed, self._emitted))
        self.wake()

    def _stored_items(self, arrived: int) -> list[Parts]:
        return [parts for index, parts in sorted(self._items.copy().items()) if index >= arrived]


def frozen(buffer: memoryview) -> memoryview:
    """The same bytes in memory that nobody else changes."""
    return buffer if buffer.readonly else memoryview(buffer.tobytes())


def _may_lend(buffers: Sequence[memoryview]) -> bool:
    return _get_running_loop() is None and sum(b.nbytes for b in buffers if not b.readonly) >= LENT_FROM
