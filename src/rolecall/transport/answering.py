"""Answering drives a `Callee` machine: it gives it a lock and a link, and hands out requests."""

from __future__ import annotations

import threading
import time
from asyncio.events import _get_running_loop
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from rolecall.errors import CallCancelledError, ProtocolError
from rolecall.transport import codec
from rolecall.transport.incoming import Incoming
from rolecall.transport.line import Line, send
from rolecall.transport.link import Link
from rolecall.transport.session import messages
from rolecall.transport.session.callee import Callee, Cancelled, Event, Take
from rolecall.transport.session.messages import Ack, Buffers, Cancel, Credit, Invocation, Probe, Settled

LENT_FROM = 1 << 20  # results from here on are not copied; their owner waits until they have arrived
LENT_S = 30.0  # how long it waits for a caller that reads nothing


class Handler(Protocol):
    """Who answers the other side's requests."""

    def dispatch(self, incoming: Incoming) -> None:
        """Starts the work. On the loop's thread; must not block."""


class Answering:
    """The requests that have come to one peer. On the loop's thread, but for `answer` and `emit`."""

    def __init__(self, line: Line, handler: Handler | None, on_notify: Callable[[str, Any], None] | None) -> None:
        self.line = line
        self._handler, self._on_notify = handler, on_notify
        self._lock = threading.Lock()
        self._callee: Callee[Incoming] = Callee()

    @property
    def kept(self) -> int:
        """Requests that run, or whose answer has not arrived."""
        return len(self._callee)

    @property
    def lending(self) -> bool:
        """Whether some answer is being sent from memory that is only lent."""
        with self._lock:
            return self._callee.lending

    # What requests ask for; any thread

    def emit(self, incoming: Incoming, encoded: codec.Encoded) -> None:
        buffers = [frozen(b) for b in encoded.buffers]
        taken = incoming.taken
        with self._lock:
            if taken.cancelled or taken.answered:
                raise CallCancelledError(self.line.name, incoming.method)
            sendings = self._callee.emit(taken, encoded.header, buffers)
            link = self.line.link
        send(link, sendings)

    def answer(self, incoming: Incoming, ok: bool, encoded: codec.Encoded, *, stable: bool) -> None:
        buffers: Buffers = encoded.buffers
        lent = ok and not stable and bool(buffers) and self.line.link is not None and _may_lend(buffers)
        if buffers and not stable and not lent:
            buffers = [frozen(b) for b in buffers]
        with self._lock:
            events, sendings = self._callee.answer(incoming.taken, ok, encoded.header, buffers, lent=lent)
            link = self.line.link
        send(link, sendings)
        self._do(events)
        if lent:
            self._wait_until_received(incoming, link, buffers)
        elif link is not None and (buffers or len(encoded.header) > LENT_FROM):
            link.wait_for_room()

    def _wait_until_received(self, incoming: Incoming, link: Link | None, buffers: Buffers) -> None:
        """Keeps the lender here while its memory is being sent; when that fails, the answer gets memory of its own."""
        taken = incoming.taken
        received, written = False, -1
        while not received and link is not None and written != link.written:
            written = link.written  # a slow reader has its time as long as it reads at all
            received = incoming.wait(lambda: not self._callee.on_loan(taken), time.monotonic() + LENT_S)
        if taken.released:
            return
        if not received and link is not None:
            link.abort(ProtocolError("a result was not read within (s)", LENT_S))
            incoming.wait(lambda: not self._callee.on_loan(taken))
        own = [frozen(b) for b in buffers]
        with self._lock:
            sendings = self._callee.replace(taken, own)
            link = self.line.link
        send(link, sendings)

    # Links

    def attach(self, remote: str) -> int:
        """Goes on over the line's link to the session `remote`; returns the link's number."""
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

    def receive(
        self, number: int, message: Invocation | Ack | Credit | Cancel | Settled | Probe, buffers: Buffers
    ) -> None:
        """Takes in what came on the link of this number."""
        with self._lock:
            events, sendings = self._callee.receive(number, message, buffers, self.line.written)
        if sendings:
            send(self.line.link, sendings)
        self._do(events)

    def _do(self, events: Sequence[Event[Incoming]]) -> None:
        for event in events:
            if isinstance(event, Take):
                self._take(event)
            elif isinstance(event, Cancelled):
                event.owner.cancel()
            else:
                event.owner.wake()

    def _take(self, event: Take[Incoming]) -> None:
        incoming = Incoming(self, event.invocation, event.buffers, event.call)
        event.call.owner = incoming
        if event.invocation.kind == messages.NOTIFICATION:
            self._take_notification(incoming)
            return
        try:
            if self._handler is None:
                raise ProtocolError("this side answers no calls", incoming.method)
            self._handler.dispatch(incoming)
        except Exception as e:  # the handler's own mistake is the answer to this call, not the end of the link
            incoming.fail(e)

    def _take_notification(self, incoming: Incoming) -> None:
        try:
            if self._on_notify is not None:
                self._on_notify(incoming.method, incoming.args())
        except Exception as e:  # nobody waits for the answer, so the loop's handler is told
            self.line.report(f"notification {incoming.method}", e)
        incoming.finish(None)


def frozen(buffer: memoryview) -> memoryview:
    """The same bytes in memory that nobody else changes."""
    return buffer if buffer.readonly else memoryview(buffer.tobytes())


def _may_lend(buffers: Buffers) -> bool:
    return _get_running_loop() is None and sum(b.nbytes for b in buffers if not b.readonly) >= LENT_FROM
