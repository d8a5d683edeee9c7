"""Peer is one end of a session that outlives its links: it makes calls, answers calls, and notifies.

What makes a call run at most once is decided in `session.caller` and `session.callee`. `OutgoingCalls` and
`IncomingCalls` drive these machines; the peer gives both its links, one after another, and a timer.

Memory: a thread that calls waits in `request` while more than `max_in_flight` bytes of its side's requests are
unanswered; a thread that answers waits while much is unsent. Reading never stops, so answers, cancellations and probes
always arrive and two full sides cannot deadlock. Code on an event loop is not made to wait; it bounds its
own number of calls.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from functools import partial
from typing import Any, TypedDict

from rolecall.errors import RPCConnectionError
from rolecall.protocol.message import Message
from rolecall.transport.call import Call
from rolecall.transport.channel import Channel
from rolecall.transport.incoming import Incoming
from rolecall.transport.incoming_calls import Handler, IncomingCalls
from rolecall.transport.link import Link
from rolecall.transport.outgoing_calls import OutgoingCalls, Prepared
from rolecall.transport.session import messages
from rolecall.transport.session.messages import Item, Reply, Status

__all__ = ["Call", "Handler", "Incoming", "Peer", "Prepared"]

PROBE_S = 1.0
MAX_IN_FLIGHT = 256 << 20
TO_CALLER = (Reply, Item, Status)


class PeerOptions(TypedDict, total=False):
    """What a `Client` hands on to its peer."""

    handler: Handler | None
    on_notify: Callable[[Incoming], None] | None
    context: Any
    probe: float
    max_in_flight: int
    on_attached: Callable[[], None] | None


class Peer:
    """One end of a session. Symmetric: both ends may call.

    `request`, `notify`, `fail_pending` and `close` may be used from any thread, `attach` and `detach` on the loop's.

    Args:
        name: The other side's name, for messages.
        handler: Answers requests; without one they are refused.
        on_notify: Gets each notification, its topic as `method`, on the loop's thread, once.
        context: Handed to the codec's decoders.
        probe: Seconds after which a silent call is probed; doubles up to 15 s.
        max_in_flight: Bytes of unanswered requests above which calling threads wait.
        on_attached: Called on the loop's thread after a link was attached.
        on_detached: Called on the loop's thread with the link's error after it was lost.

    Attributes:
        session: The id of this end.
        outgoing: The calls of this side.
        incoming: The requests of the other side.
    """

    def __init__(
        self,
        name: str,
        *,
        loop: asyncio.AbstractEventLoop,
        handler: Handler | None = None,
        on_notify: Callable[[Incoming], None] | None = None,
        context: Any = None,
        probe: float = PROBE_S,
        max_in_flight: int = MAX_IN_FLIGHT,
        on_attached: Callable[[], None] | None = None,
        on_detached: Callable[[Exception | None], None] | None = None,
    ) -> None:
        self.name, self.loop = name, loop
        self.session = secrets.token_hex(8)
        self._on_attached, self._on_detached = on_attached, on_detached
        self._tick_s = probe / 4
        self._timer: asyncio.TimerHandle | None = None
        self._channel = Channel(name, loop, context)
        self.outgoing = OutgoingCalls(self._channel, probe=probe, max_bytes=max_in_flight)
        self.incoming = IncomingCalls(self._channel, handler, on_notify)

    @property
    def link(self) -> Link | None:
        """The present link."""
        return self._channel.link

    @property
    def attached(self) -> bool:
        """Whether there is a link."""
        return self._channel.link is not None

    @property
    def failure(self) -> BaseException | None:
        """What later calls raise, once this end was closed or failed."""
        return self.outgoing.failure

    @property
    def closed(self) -> bool:
        """Whether this end was closed or failed."""
        return self.outgoing.failure is not None

    # OutgoingCalls

    def request(
        self,
        method: str,
        value: Any = None,
        *,
        meta: Message | dict[str, Any] | None = None,
        timeout: float | None = None,
        streaming: bool = False,
        answer: Any = None,
    ) -> Call:
        """Sends a request; without a link it is sent as soon as there is one.

        Args:
            meta: Options beside the value, a struct or plain msgpack values; the other side gets a dict.
            timeout: Seconds until the call is cancelled and fails with TimeoutError.
            answer: Type of the answer, or of each item of a stream, where that is a struct of `protocol`.

        Raises:
            EncodeError: The value is not serializable. Nothing was sent.
            RPCConnectionError: The peer is closed. A failed peer raises the error that it was failed with.
        """
        kind = messages.STREAM if streaming else messages.CALL
        return self._request(kind, Prepared.of(method, value, meta), timeout, answer)

    def send(self, prepared: Prepared, timeout: float | None = None) -> Call:
        """As `request`, of what was encoded for several peers at once."""
        return self._request(messages.CALL, prepared, timeout)

    def notify(self, topic: str, value: Any = None) -> None:
        """Sends a notification, which has no answer. It arrives once, and in order unless a link is lost."""
        self._request(messages.NOTIFICATION, Prepared.of(topic, value))

    def _request(self, kind: int, prepared: Prepared, timeout: float | None = None, answer: Any = None) -> Call:
        call = self.outgoing.request(kind, prepared, timeout, answer)
        if self._timer is None:
            self._channel.call_soon(self._start_timer)
        return call

    def fail_pending(self, exc: BaseException) -> None:
        """Fails every pending call with `exc`; later calls work. Any thread."""
        self.outgoing.fail_all(exc)

    def fail(self, exc: BaseException) -> None:
        """Ends the session: pending and later calls raise `exc`. Any thread."""
        self.outgoing.fail_all(exc, last=True)
        self._channel.call_soon(self._end)

    def close(self) -> None:
        """Ends the session: pending and later calls raise RPCConnectionError. Any thread, any number of times."""
        self.fail(RPCConnectionError(self.name, "closed on this side"))

    def _end(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        link, self._channel.link = self._channel.link, None
        if link is not None and self.incoming.zero_copy_pending:
            link.abort()  # its queue views memory that the engine may change from here on
        elif link is not None:
            link.close()
        self.incoming.close()

    # The link

    def attach(self, link: Link, remote: str = "") -> None:
        """Continues the session over `link`; a former link is dropped, and what it still carries is ignored.

        Args:
            remote: The other side's session, where known. Another one than before remembers nothing: calls that were
                sent to the former one fail.
        """
        if self.closed:
            link.close()
            return
        if self._channel.link is not None:
            self._drop_link(self._channel.link)
        self._channel.link = link
        link.on_closed = lambda exc: self.detach(link, exc)
        incoming = self.incoming.attach(remote)
        outgoing = self.outgoing.attach(remote)
        link.on_frame = partial(self._on_frame, outgoing, incoming)
        link.start()
        self._start_timer()
        if self._on_attached is not None:
            self._on_attached()

    def detach(self, link: Link, exc: Exception | None) -> None:
        """The link is lost; calls wait for the next one."""
        if link is self._channel.link:
            self._drop_link(link)
            if self._on_detached is not None:
                self._on_detached(exc)

    def _drop_link(self, link: Link) -> None:
        self._channel.link = None
        link.abort()  # its queue may view memory that the engine may change once `detach` wakes it
        self.incoming.detach()
        self.outgoing.detach()

    def _start_timer(self) -> None:
        if self._timer is None and not self.closed:
            self._timer = self.loop.call_later(self._tick_s, self._tick)

    def _tick(self) -> None:
        self._timer = None  # first: a thread that calls from here on starts it again
        if self.outgoing.busy:  # an idle peer costs nothing
            self._start_timer()
            self.outgoing.tick()

    def _on_frame(self, outgoing: int, incoming: int, header: bytes | memoryview, buffers: list[memoryview]) -> None:
        message = messages.decode(header)
        if isinstance(message, TO_CALLER):
            self.outgoing.receive(outgoing, message, buffers)
        else:
            self.incoming.receive(incoming, message, buffers)
