"""Requests that arrive: `Incoming` is one of them, `IncomingCalls` drives the `Callee` machine of a peer.

It locks the machine, sends what it returns, and dispatches requests.
"""

from __future__ import annotations

import asyncio
import threading
import time
from asyncio.events import _get_running_loop
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

from rolecall.errors import CallCancelledError, EncodeError, ProtocolError, RolecallError
from rolecall.transport import codec
from rolecall.transport.channel import Channel, send
from rolecall.transport.codec.exceptions import message_of, said
from rolecall.transport.link import Link
from rolecall.transport.session import messages
from rolecall.transport.session.callee import Accepted, AcceptedCall, Callee, Event
from rolecall.transport.session.messages import Body, Buffers, Invocation, ToCallee
from rolecall.transport.waiting import Waitable

ZERO_COPY_FROM = 1 << 20  # larger results are sent without a copy, and the engine waits until they have arrived
ZERO_COPY_S = 30.0  # how long the engine waits for a caller that reads nothing
_NOTHING, _NO_FIELDS = b"\xc0", b"\x80"  # None and {} as msgpack
T = TypeVar("T")


class Incoming(Waitable):
    """One accepted request. Each call id gives at most one.

    Answer it with `finish` or `fail`, from any thread; the first answer counts.

    Attributes:
        method: Name of the method.
        meta: Options of the call, plain values.
        streaming: Whether the caller takes items (`emit`).
        accepted: Its state in the session. Only the peer uses it.
    """

    __slots__ = ("_answerer", "_body", "_callbacks", "accepted", "meta", "method", "streaming")

    def __init__(
        self, answerer: IncomingCalls, invocation: Invocation, buffers: Buffers, accepted: AcceptedCall[Incoming]
    ) -> None:
        self._waiters = []
        self._answerer, self.accepted = answerer, accepted
        self.method, self.meta, self.streaming = invocation.method, invocation.meta, accepted.stream is not None
        self._body: Body | None = (invocation.body, buffers)
        self._callbacks: list[Callable[[], object]] = []

    @property
    def cancelled(self) -> bool:
        """Whether the caller has cancelled."""
        return self.accepted.cancelled

    def args(self) -> Any:
        """Decodes the request's value, once, and drops the received bytes.

        Raises:
            CodecError: They are not an encoded value.
        """
        return self.received().value()

    def message(self, kind: type[T], sender: str) -> T:
        """As `args`, where the value is a struct of `protocol`; none is one without fields.

        Raises:
            ProtocolError: It is another value; see `from_plain`.
        """
        body, buffers = self._taken()
        return codec.decode_message(kind, _NO_FIELDS if body == _NOTHING else body, buffers, sender)

    def received(self) -> codec.Received:
        """As `args`, but decodes the references only; the value is decoded once it is known what replaces them."""
        return codec.Received(*self._taken(), context=self._answerer.channel.context)

    def _taken(self) -> Body:
        body, self._body = self._body, None
        if body is None:
            raise ProtocolError("the arguments of a call were taken twice", self.method)
        return body

    def on_cancel(self, fn: Callable[[], object]) -> None:
        """Calls `fn` on the loop's thread when the caller cancels; at once, in this thread, when it already has."""
        self._callbacks.append(fn)
        if self.cancelled:
            self._run_callbacks()

    def finish(self, value: Any, *, stable: bool = False) -> None:
        """Answers with `value`, encoded in this thread. What cannot be encoded is answered with an EncodeError.

        Arrays and tensors of more than 1 MiB are sent without a copy: the calling thread waits until they have arrived,
        so that the engine may change them afterwards. On an event loop, which must not wait, they are copied.

        Args:
            stable: The value's memory will never change; neither copy nor wait.
        """
        try:
            self._answerer.answer(self, True, codec.encode(value, "result"), stable=stable)
        except BaseException as e:  # encoding runs hooks of the user's types, which may raise anything
            self.fail(e)

    def fail(self, exc: BaseException) -> None:
        """Answers with an error; one that is not serializable is answered with an EncodeError."""
        error = exc
        if isinstance(exc, asyncio.CancelledError):
            error = CallCancelledError(self._answerer.channel.name, self.method)
        try:
            self._answerer.answer(self, False, codec.encode(error, "error"), stable=False)
        except BaseException as e:  # as above; the second attempt has only text in it
            hint = f"it said: {message_of(error)}" if isinstance(e, RolecallError) else f"encoding it raised {said(e)}"
            encoded = codec.encode(EncodeError("error", type(error).__qualname__, hint), "error")
            self._answerer.answer(self, False, encoded, stable=False)

    async def emit(self, item: Any) -> None:
        """Sends one item of the stream; waits while the caller's window is full.

        Raises:
            CallCancelledError: The caller has cancelled.
            EncodeError: The item is not serializable; the stream may go on.
        """
        await self.wait_async(self._has_room)
        self._push(item)

    def emit_blocking(self, item: Any) -> None:
        """As `emit`, for a thread."""
        self.wait(self._has_room)
        self._push(item)

    def __repr__(self) -> str:
        return f"<Incoming {self.accepted.seq} {self.method} {'answered' if self.accepted.answered else 'running'}>"

    def _has_room(self) -> bool:
        return self.accepted.has_room

    def _push(self, item: Any) -> None:
        if not self.streaming:
            raise ProtocolError("items of a call that is not a stream", self.method)
        self._answerer.emit(self, codec.encode(item, f"item[{self.accepted.emitted}]"))

    def changed(self) -> None:
        """Wakes the engine, and runs the callbacks of a cancelled call. Called by the peer, on the loop's thread."""
        if self._callbacks and self.cancelled:
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
                self._answerer.channel.report(f"a cancel callback of {self.method}", e)


class Handler(Protocol):
    """Answers the other side's requests."""

    def dispatch(self, incoming: Incoming) -> None:
        """Starts answering. Called on the loop's thread; must not block."""


class IncomingCalls:
    """The requests that one peer has received. All methods but `answer` and `emit` are called on the loop's thread."""

    def __init__(self, channel: Channel, handler: Handler | None, on_notify: Callable[[Incoming], None] | None) -> None:
        self.channel = channel
        self._handler, self._on_notify = handler, on_notify
        self._lock = threading.Lock()
        self._callee: Callee[Incoming] = Callee()

    @property
    def kept(self) -> int:
        """Requests that run, or whose answer is not acknowledged."""
        return len(self._callee)

    @property
    def zero_copy_pending(self) -> bool:
        """Whether an answer is being sent from the engine's own memory."""
        with self._lock:
            return self._callee.zero_copy_pending

    # Called by requests, in any thread

    def emit(self, incoming: Incoming, encoded: codec.Encoded) -> None:
        """Sends an item; raises CallCancelledError once the call is cancelled or answered."""
        buffers = [frozen(b) for b in encoded.buffers]
        call = incoming.accepted
        with self._lock:
            if call.cancelled or call.answered:
                raise CallCancelledError(self.channel.name, incoming.method)
            sendings = self._callee.emit(call, encoded.header, buffers)
            link = self.channel.link
        send(link, sendings)

    def answer(self, incoming: Incoming, ok: bool, encoded: codec.Encoded, *, stable: bool) -> None:
        """Answers; of several answers the first counts."""
        buffers: Buffers = encoded.buffers
        own = bool(buffers) and not stable  # memory of the engine, which it may change
        zero_copy = own and ok and self.channel.link is not None and _may_send_zero_copy(buffers)
        if own and not zero_copy:
            buffers = [frozen(b) for b in buffers]
        with self._lock:
            events, sendings = self._callee.answer(incoming.accepted, ok, encoded.header, buffers, zero_copy=zero_copy)
            link = self.channel.link
        send(link, sendings)
        if events:
            self._do(events)
        if zero_copy:
            self._wait_until_received(incoming, link, buffers)
        elif link is not None and (buffers or len(encoded.header) > ZERO_COPY_FROM):
            link.wait_for_room()

    def _wait_until_received(self, incoming: Incoming, link: Link | None, buffers: Buffers) -> None:
        """Blocks the engine while its memory is being sent; if the link is lost, the answer is copied and resent."""
        call = incoming.accepted
        received, written = False, -1
        while not received and link is not None and written != link.written:
            written = link.written  # a slow reader has time as long as it reads at all
            received = incoming.wait(lambda: not self._callee.sending_zero_copy(call), time.monotonic() + ZERO_COPY_S)
        if call.released:
            return
        if not received and link is not None:
            link.abort(ProtocolError("a result was not read within (s)", ZERO_COPY_S))
            incoming.wait(lambda: not self._callee.sending_zero_copy(call))
        own = [frozen(b) for b in buffers]
        with self._lock:
            sendings = self._callee.replace(call, own)
            link = self.channel.link
        send(link, sendings)

    # Links

    def attach(self, remote: str) -> int:
        """Continues over the channel's link to the session `remote`; returns the link's number."""
        with self._lock:
            number, events = self._callee.attach(remote)
        self._do(events)
        return number

    def detach(self) -> None:
        """The link is lost."""
        with self._lock:
            events = self._callee.detach()
        self._do(events)

    def close(self) -> None:
        """Ends every request."""
        with self._lock:
            events = self._callee.close()
        self._do(events)

    # What arrives

    def receive(self, number: int, message: ToCallee, buffers: Buffers) -> None:
        """Handles a message that came on the link of this number."""
        with self._lock:
            events, sendings = self._callee.receive(number, message, buffers, self.channel.written)
        if sendings:
            send(self.channel.link, sendings)
        self._do(events)

    def _do(self, events: Sequence[Event[Incoming]]) -> None:
        for event in events:
            if isinstance(event, Accepted):
                self._accept(event)
            else:
                event.owner.changed()

    def _accept(self, event: Accepted[Incoming]) -> None:
        incoming = Incoming(self, event.invocation, event.buffers, event.call)
        event.call.owner = incoming
        if event.invocation.kind == messages.NOTIFICATION:
            self._handle_notification(incoming)
            return
        try:
            if self._handler is None:
                raise ProtocolError("this side answers no calls", incoming.method)
            self._handler.dispatch(incoming)
        except Exception as e:  # a bug of the handler fails this call, not the link
            incoming.fail(e)

    def _handle_notification(self, incoming: Incoming) -> None:
        try:
            if self._on_notify is not None:
                self._on_notify(incoming)
        except Exception as e:  # a notification has no caller that could get it
            self.channel.report(f"notification {incoming.method}", e)
        incoming.finish(None)


def frozen(buffer: memoryview) -> memoryview:
    """The bytes in memory that nothing else writes to; copies unless they are read-only."""
    return buffer if buffer.readonly else memoryview(buffer.tobytes())


def _may_send_zero_copy(buffers: Buffers) -> bool:
    return _get_running_loop() is None and sum(b.nbytes for b in buffers if not b.readonly) >= ZERO_COPY_FROM
