"""Peer is one end of a session that outlives its links: it makes calls, answers calls, and notifies.

What makes a call run at most once is decided in `session.caller` and `session.callee`. The peer drives the former
machine: it locks it, tells it the time, sends what it returns, and completes calls. `IncomingCalls` drives the latter.
Both are given the links, one after another.

Memory: a thread that calls waits in `request` while more than `max_in_flight` bytes of its side's requests are
unanswered; a thread that answers waits while much is unsent. Reading never stops, so answers, cancellations and probes
always arrive and two full sides cannot deadlock. Code on an event loop is not made to wait; it bounds its
own number of calls.
"""

from __future__ import annotations

import asyncio
import secrets
import threading
import time
from asyncio.events import _get_running_loop
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import msgspec

from rolecall.errors import CallCancelledError, EncodeError, RPCConnectionError
from rolecall.protocol.message import Message
from rolecall.transport import codec
from rolecall.transport.call import Call, fresh
from rolecall.transport.channel import Channel, send
from rolecall.transport.frames import pack
from rolecall.transport.incoming import Handler, Incoming, IncomingCalls
from rolecall.transport.link import Link
from rolecall.transport.session import messages
from rolecall.transport.session.caller import Answered, Arrived, Caller, Event, Failed, Reason
from rolecall.transport.session.messages import Item, Reply, Sending, Status
from rolecall.transport.waiting import Waitable

__all__ = ["Call", "Handler", "Incoming", "Peer", "Prepared"]

PROBE_S = 1.0
MAX_IN_FLIGHT = 256 << 20
TO_CALLER = (Reply, Item, Status)


class Prepared(NamedTuple):
    """A request that is encoded, once for all who are sent it.

    Attributes:
        value: Held until the answer is there.
    """

    method: str
    value: Any
    encoded: codec.Encoded
    meta: Any

    @classmethod
    def of(cls, method: str, value: Any, meta: Message | dict[str, Any] | None = None) -> Prepared:
        """Raises EncodeError when the value, or `meta`, is not serializable."""
        encoded = codec.encode(value)
        return tuple.__new__(cls, (method, value, encoded, {} if meta is None else _checked(meta)))


class Peer(Waitable):
    """One end of a session. Symmetric: both ends may call.

    `request`, `notify`, `fail_pending` and `close` may be used from any thread, `attach` and `detach` on the loop's.

    Args:
        name: The other side's name, for messages.
        handler: Answers requests; without one they are refused. Without `on_notify` too, a request closes the link.
        on_notify: Gets each notification, its topic as `method`, on the loop's thread, once.
        context: Handed to the codec's decoders.
        probe: Seconds after which a silent call is probed; doubles up to 15 s.
        max_in_flight: Bytes of unanswered requests above which calling threads wait.
        on_attached: Called on the loop's thread after a link was attached.
        on_detached: Called on the loop's thread with the link's error after it was lost.

    Attributes:
        session: The id of this end.
        channel: What both directions share, the present link above all.
        failure: What later calls raise, once this end was closed or failed.
        incoming: The requests of the other side.
        detached: Set whenever the link is lost.
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
        super().__init__()
        self.name, self.loop = name, loop
        self.session = secrets.token_hex(8)
        self._on_attached, self._on_detached = on_attached, on_detached
        self._tick_s = probe / 4
        self._timer: asyncio.TimerHandle | None = None
        self.channel = Channel(name, loop, context)
        self.failure: BaseException | None = None
        self._lock = threading.Lock()
        self._caller: Caller[Call] = Caller(probe=probe, max_bytes=max_in_flight)
        self._answers_only = handler is None and on_notify is None
        self.incoming = IncomingCalls(self.channel, handler, on_notify)
        self.detached = asyncio.Event()

    @property
    def link(self) -> Link | None:
        """The present link."""
        return self.channel.link

    @property
    def attached(self) -> bool:
        """Whether there is a link."""
        return self.channel.link is not None

    @property
    def closed(self) -> bool:
        """Whether this end was closed or failed."""
        return self.failure is not None

    @property
    def waiting(self) -> int:
        """Calls without an answer, not counting cancelled ones."""
        return self._caller.waiting

    @property
    def remembered(self) -> int:
        """Calls, notifications and cancelled calls that may still be probed."""
        return len(self._caller)

    # Calls

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
        method, value, encoded, options = prepared
        call = Call(self, method, value, timeout, answer, streaming=kind == messages.STREAM)
        if kind != messages.NOTIFICATION:
            self._wait_for_room(call.deadline)
        with self._lock:
            if self.failure is not None:
                raise fresh(self.failure)
            opened = self._caller.invoke(call, kind, method, options, encoded.header, encoded.buffers, call.deadline)
            call.opened = opened
            link, sent, invocation = self.channel.link, opened.sent, opened.invocation
        if sent is not None and link is not None and invocation is not None:
            try:
                opened.sent = sent[0], link.send(pack(messages.encode(invocation), encoded.buffers))
            except BaseException:  # Ctrl-C too: the caller never gets this call
                with self._lock:
                    self._caller.withdraw(opened)
                raise
        if self._timer is None:
            self.channel.call_soon(self._start_timer)
        return call

    def _wait_for_room(self, deadline: float | None) -> None:
        """Blocks a thread while too much is in flight; never on an event loop."""
        link = self.channel.link
        if link is not None:
            link.wait_for_room()
        if not self._has_room() and _get_running_loop() is None:
            self.wait(self._has_room, deadline)

    def _has_room(self) -> bool:
        return self._caller.has_room or self.failure is not None

    def consumed(self, call: Call, total: int) -> None:
        """The call's reader has taken so many items of the stream."""
        with self._lock:
            opened = call.opened
            sendings = self._caller.consume(opened, total) if opened is not None else ()
            link = self.channel.link
        send(link, sendings)

    def abandon(self, call: Call, reason: Reason) -> None:
        """Fails the call for that reason, unless it is done, and sends a cancellation."""
        with self._lock:
            opened = call.opened
            if opened is None:
                return
            events, sendings = self._caller.abandon(opened, reason)
            link = self.channel.link
        self._do(link, events, sendings)

    def fail_pending(self, exc: BaseException) -> None:
        """Fails every pending call with `exc`; later calls work. Any thread."""
        with self._lock:
            calls = self._caller.fail_all()
        for call in calls:
            self.channel.drop(call.failed(exc))
        self.wake()

    def fail(self, exc: BaseException) -> None:
        """Ends the session: pending and later calls raise `exc`. Any thread."""
        with self._lock:
            self.failure = self.failure or exc
        self.fail_pending(exc)
        self.channel.call_soon(self._end)

    def close(self) -> None:
        """Ends the session: pending and later calls raise RPCConnectionError. Any thread, any number of times."""
        self.fail(RPCConnectionError(self.name, "closed on this side"))

    def _end(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        link, self.channel.link = self.channel.link, None
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
        if self.channel.link is not None:
            self._drop_link(self.channel.link)
        self.channel.link = link
        self.detached.clear()
        link.on_closed = lambda exc: self.detach(link, exc)
        incoming = self.incoming.attach(remote)
        with self._lock:
            outgoing, events, sendings = self._caller.attach(remote, time.monotonic())
        self._do(link, events, sendings)
        link.on_frame = partial(self._on_frame, outgoing, incoming)
        link.start()
        self._start_timer()
        if self._on_attached is not None:
            self._on_attached()

    def detach(self, link: Link, exc: Exception | None) -> None:
        """The link is lost; calls wait for the next one."""
        if link is self.channel.link:
            self._drop_link(link)
            self.detached.set()
            if self._on_detached is not None:
                self._on_detached(exc)

    def _drop_link(self, link: Link) -> None:
        self.channel.link = None
        link.abort()  # its queue may view memory that the engine may change once `detach` wakes it
        self.incoming.detach()
        with self._lock:
            self._caller.detach()

    def _start_timer(self) -> None:
        if self._timer is None and not self.closed:
            self._timer = self.loop.call_later(self._tick_s, self._tick)

    def _tick(self) -> None:
        self._timer = None  # first: a thread that calls from here on starts it again
        if self._caller.busy:  # an idle peer costs nothing
            self._start_timer()
            with self._lock:
                events, sendings = self._caller.tick(time.monotonic(), self.channel.written)
            self._do(self.channel.link, events, sendings)

    def _on_frame(self, outgoing: int, incoming: int, header: bytes | memoryview, buffers: list[memoryview]) -> None:
        message = messages.decode(header, answers_only=self._answers_only)
        if isinstance(message, TO_CALLER):
            with self._lock:
                events, sendings = self._caller.receive(outgoing, message, buffers, time.monotonic())
            self._do(self.channel.link, events, sendings)
        else:
            self.incoming.receive(incoming, message, buffers)

    def _do(self, link: Link | None, events: Sequence[Event[Call]], sendings: Sequence[Sending]) -> None:
        for event in events:
            if isinstance(event, Answered):
                event.owner.answered(event.ok, event.body)
            elif isinstance(event, Arrived):
                event.owner.arrived(event.body)
            elif isinstance(event, Failed):
                self.channel.drop(event.owner.failed(self._error(event.owner, event.reason)))
            else:
                self.channel.drop([event.body])
        if sendings:
            send(link, sendings)
        if self._waiters and self._has_room():
            self.wake()

    def _error(self, call: Call, reason: Reason) -> Exception:
        name, method = self.channel.name, call.method
        if reason is Reason.CANCELLED:
            return CallCancelledError(name, method)
        if reason is Reason.EXPIRED:
            return TimeoutError(f"{name}: {method}() had no answer within {call.timeout:g} s")
        if reason is Reason.RESTARTED:
            return RPCConnectionError(name, "the process was restarted; the call may have run")
        return RPCConnectionError(name, f"the result of {method}() is no longer kept; the call was not run again")


def _checked(meta: Message | dict[str, Any]) -> Any:
    """The options as they will be sent, or EncodeError, before the call exists."""
    try:
        return msgspec.Raw(messages.encode(meta))
    except (TypeError, ValueError, OverflowError) as e:
        raise EncodeError("meta", type(meta).__name__, f"it takes plain values only ({e})") from e
