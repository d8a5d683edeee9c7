"""Peer is one end of a session that outlives its links: it calls, is called, and notifies.

What makes a call run at most once is decided in `session.caller` and `session.callee`; `Calling` and `Answering` drive
these machines, and a peer gives both of them its links, one after another, and its timer.

Memory: a thread that calls waits in `request` while more than `max_in_flight` bytes of its side's requests are
unanswered; a thread that answers waits while much is unsent. Reading never stops, so answers, cancellations and probes
always get through and two full sides cannot block each other. Code on an event loop is not made to wait; it bounds its
own number of calls.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from typing import Any

from rolecall.errors import RPCConnectionError
from rolecall.transport.answering import Answering, Handler
from rolecall.transport.call import Call
from rolecall.transport.calling import Calling
from rolecall.transport.incoming import Incoming
from rolecall.transport.line import Line
from rolecall.transport.link import Link
from rolecall.transport.session import messages
from rolecall.transport.session.messages import Item, Reply, Status

__all__ = ["Call", "Handler", "Incoming", "Peer"]

PROBE_S = 1.0
MAX_IN_FLIGHT = 256 << 20
TO_CALLER = (Reply, Item, Status)


class Peer:
    """One end of a session. Symmetric: both ends may call.

    `request`, `notify`, `fail_pending` and `close` may be used from any thread, `attach` and `detach` on the loop's.

    Args:
        name: The other side's name, for messages.
        handler: Answers requests; without one they are refused.
        on_notify: Gets topic and value of each notification, on the loop's thread, once.
        context: Handed to the codec's decoders.
        window: Items of a stream that may be under way.
        probe: Seconds after which a silent call is asked after; doubles up to 15 s.
        max_in_flight: Bytes of unanswered requests above which calling threads wait.
        on_attached: Called on the loop's thread after a link was attached.
        on_detached: Called on the loop's thread with the link's error after it was lost.

    Attributes:
        session: The id of this end.
    """

    def __init__(
        self,
        name: str,
        *,
        loop: asyncio.AbstractEventLoop,
        handler: Handler | None = None,
        on_notify: Callable[[str, Any], None] | None = None,
        context: Any = None,
        window: int = 16,
        probe: float = PROBE_S,
        max_in_flight: int = MAX_IN_FLIGHT,
        on_attached: Callable[[], None] | None = None,
        on_detached: Callable[[Exception | None], None] | None = None,
    ) -> None:
        self.name, self.loop, self.window = name, loop, window
        self.session = secrets.token_hex(8)
        self._on_attached, self._on_detached = on_attached, on_detached
        self._tick_s = probe / 4
        self._timer: asyncio.TimerHandle | None = None
        self._line = Line(name, loop, context)
        self._calling = Calling(self._line, window=window, probe=probe, max_bytes=max_in_flight)
        self._answering = Answering(self._line, handler, on_notify)

    @property
    def link(self) -> Link | None:
        """The present link."""
        return self._line.link

    @property
    def attached(self) -> bool:
        """Whether there is a link."""
        return self._line.link is not None

    @property
    def pending(self) -> int:
        """Calls of this side without an answer."""
        return self._calling.waiting

    @property
    def remembered(self) -> int:
        """As `pending`, with notifications and with cancelled calls until the other side certainly knows of it."""
        return self._calling.remembered

    @property
    def kept(self) -> int:
        """Requests of the other side that run, or whose answer has not arrived."""
        return self._answering.kept

    @property
    def failure(self) -> BaseException | None:
        """What later calls raise, once this end was closed or failed."""
        return self._calling.failure

    @property
    def closed(self) -> bool:
        """Whether this end was closed or failed."""
        return self._calling.failure is not None

    # Calling

    def request(
        self,
        method: str,
        value: Any = None,
        *,
        meta: dict[str, Any] | None = None,
        timeout: float | None = None,
        streaming: bool = False,
    ) -> Call:
        """Sends a request; without a link it leaves as soon as there is one.

        Args:
            meta: Options beside the value; plain msgpack values only.
            timeout: Seconds until the call fails with TimeoutError and the callee is told to give up.

        Raises:
            EncodeError: The value is not serializable. Nothing was sent.
            RPCConnectionError: The peer is closed, or what it was failed with.
        """
        kind = messages.STREAM if streaming else messages.CALL
        return self._calling.request(kind, method, value, meta or {}, timeout)

    def notify(self, topic: str, value: Any = None) -> None:
        """Tells the other side something, once, without an answer. In order as long as nothing is lost on the way."""
        self._calling.request(messages.NOTIFICATION, topic, value, {}, None)

    def fail_pending(self, exc: BaseException) -> None:
        """Fails every call that waits, at once, with `exc`; later calls are not touched. Any thread."""
        self._calling.fail_all(exc)

    def fail(self, exc: BaseException) -> None:
        """Ends the session: pending and later calls raise `exc`. Any thread."""
        self._calling.fail_all(exc, last=True)
        self._line.soon(self._end)

    def close(self) -> None:
        """Ends the session: pending and later calls raise RPCConnectionError. Any thread, any number of times."""
        self.fail(RPCConnectionError(self.name, "closed on this side"))

    def _end(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        link, self._line.link = self._line.link, None
        if link is not None and self._answering.lending:
            link.abort()  # its queue views memory whose owner is about to be let go
        elif link is not None:
            link.close()
        self._answering.close()

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
        if self._line.link is not None:
            self._drop_link(self._line.link)
        self._line.link = link
        link.on_closed = lambda exc: self.detach(link, exc)
        answering = self._answering.attach(remote)
        link.on_frame = lambda header, buffers: self._on_frame(calling, answering, header, buffers)
        link.start()
        calling = self._calling.attach(remote)
        if self._timer is None:
            self._timer = self.loop.call_later(self._tick_s, self._tick)
        if self._on_attached is not None:
            self._on_attached()

    def detach(self, link: Link, exc: Exception | None) -> None:
        """Takes note that `link` is gone; calls wait for the next one."""
        if link is self._line.link:
            self._drop_link(link)
            if self._on_detached is not None:
                self._on_detached(exc)

    def _drop_link(self, link: Link) -> None:
        self._line.link = None
        link.abort()  # before owners of lent memory, which its queue may view, are told to go on
        self._answering.detach()
        self._calling.detach()

    def _tick(self) -> None:
        if self._line.link is None and not self.pending:
            self._timer = None  # an idle peer costs nothing; the next link starts it again
            return
        self._timer = self.loop.call_later(self._tick_s, self._tick)
        self._calling.tick()

    def _on_frame(self, calling: int, answering: int, header: bytes | memoryview, buffers: list[memoryview]) -> None:
        message = messages.decode(header)
        if isinstance(message, TO_CALLER):
            self._calling.receive(calling, message, buffers)
        else:
            self._answering.receive(answering, message, buffers)
