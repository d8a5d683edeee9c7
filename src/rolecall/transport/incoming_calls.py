"""IncomingCalls drives a `Callee` machine: it locks it, sends what it returns, and dispatches requests."""

from __future__ import annotations

import threading
import time
from asyncio.events import _get_running_loop
from collections.abc import Callable, Sequence
from typing import Protocol

from rolecall.errors import CallCancelledError, ProtocolError
from rolecall.transport import codec
from rolecall.transport.channel import Channel, send
from rolecall.transport.incoming import Incoming
from rolecall.transport.link import Link
from rolecall.transport.session import messages
from rolecall.transport.session.callee import Accepted, Callee, Event
from rolecall.transport.session.messages import Buffers, ToCallee

ZERO_COPY_FROM = 1 << 20  # larger results are sent without a copy, and the engine waits until they have arrived
ZERO_COPY_S = 30.0  # how long the engine waits for a caller that reads nothing


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
