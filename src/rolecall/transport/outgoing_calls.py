"""OutgoingCalls drives a `Caller` machine: it locks it, tells it the time, sends what it returns, completes calls."""

from __future__ import annotations

import threading
import time
from asyncio.events import _get_running_loop
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from rolecall.errors import CallCancelledError, EncodeError, RPCConnectionError
from rolecall.protocol.message import Message
from rolecall.transport import codec
from rolecall.transport.call import Call, fresh
from rolecall.transport.channel import Channel, send
from rolecall.transport.frames import pack
from rolecall.transport.link import Link
from rolecall.transport.session import messages
from rolecall.transport.session.caller import Answered, Arrived, Caller, Event, Failed, Reason
from rolecall.transport.session.messages import Buffers, Sending, ToCaller
from rolecall.transport.waiting import Waitable


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


class OutgoingCalls(Waitable):
    """The calls that one peer makes. Any thread, except where a method says otherwise.

    Attributes:
        failure: What every later call raises, once the peer has ended.
    """

    def __init__(self, channel: Channel, *, probe: float, max_bytes: int) -> None:
        super().__init__()
        self.channel = channel
        self.failure: BaseException | None = None
        self._lock = threading.Lock()
        self._caller: Caller[Call] = Caller(probe=probe, max_bytes=max_bytes)

    @property
    def waiting(self) -> int:
        """Calls without an answer, not counting cancelled ones."""
        return self._caller.waiting

    @property
    def busy(self) -> bool:
        """Whether `tick` has something to do, now or later."""
        return self._caller.busy

    @property
    def remembered(self) -> int:
        """Calls, notifications and cancelled calls that may still be probed."""
        return len(self._caller)

    def request(
        self,
        kind: int,
        prepared: Prepared,
        timeout: float | None,
        answer: Any,
    ) -> Call:
        """Makes a call, and sends it if there is a link. Raises the error with which the peer has ended."""
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
        if sent is None or link is None or invocation is None:
            return call
        try:
            opened.sent = sent[0], link.send(pack(messages.encode(invocation), encoded.buffers))
        except BaseException:  # Ctrl-C too: the caller never gets this call
            with self._lock:
                self._caller.withdraw(opened)
            raise
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

    # Called by calls

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

    def fail_all(self, error: BaseException, *, last: bool = False) -> None:
        """Fails every pending call; with `last`, later calls fail too."""
        with self._lock:
            if last and self.failure is None:
                self.failure = error
            calls = self._caller.fail_all()
        for call in calls:
            self.channel.drop(call.failed(error))
        self.wake()

    # On the loop's thread

    def attach(self, remote: str) -> int:
        """Continues over the channel's link to the session `remote`; returns the link's number."""
        with self._lock:
            number, events, sendings = self._caller.attach(remote, time.monotonic())
        self._do(self.channel.link, events, sendings)
        return number

    def detach(self) -> None:
        """The link is lost."""
        with self._lock:
            self._caller.detach()

    def tick(self) -> None:
        """Probes silent calls, fails those whose deadline has passed."""
        with self._lock:
            events, sendings = self._caller.tick(time.monotonic(), self.channel.written)
        self._do(self.channel.link, events, sendings)

    def receive(self, number: int, message: ToCaller, buffers: Buffers) -> None:
        """Handles a message that came on the link of this number."""
        with self._lock:
            events, sendings = self._caller.receive(number, message, buffers, time.monotonic())
        self._do(self.channel.link, events, sendings)

    def _do(self, link: Link | None, events: Sequence[Event[Call]], sendings: Sequence[Sending]) -> None:
        for event in events:
            if isinstance(event, Answered):
                event.owner.answered(event.ok, event.body)
            elif isinstance(event, Arrived):
                event.owner.arrived(event.body)
            elif isinstance(event, Failed):
                self.channel.drop(event.owner.failed(self._error(event.owner, event.reason)))
            else:
                self.channel.drop(event.bodies)
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
