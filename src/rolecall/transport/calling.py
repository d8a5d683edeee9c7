"""Calling drives a `Caller` machine: it gives it a lock, the clock and a link, and completes calls as it says."""

from __future__ import annotations

import threading
import time
from asyncio.events import _get_running_loop
from collections.abc import Sequence
from typing import Any

from rolecall.errors import CallCancelledError, EncodeError, RPCConnectionError
from rolecall.transport import codec
from rolecall.transport.call import Call, fresh
from rolecall.transport.frames import pack
from rolecall.transport.line import Line, send
from rolecall.transport.link import Link
from rolecall.transport.session import messages
from rolecall.transport.session.caller import Answered, Arrived, Caller, Event, Failed, Reason
from rolecall.transport.session.messages import Buffers, Item, Reply, Status
from rolecall.transport.session.sending import Sending
from rolecall.transport.waiting import Waitable


class Calling(Waitable):
    """The calls of one peer. Any thread, except where a method says otherwise.

    Attributes:
        failure: What every later call raises, once the peer has ended.
    """

    def __init__(self, line: Line, *, window: int, probe: float, max_bytes: int) -> None:
        super().__init__()
        self.line = line
        self.failure: BaseException | None = None
        self._lock = threading.Lock()
        self._caller: Caller[Call] = Caller(window=window, probe=probe, max_bytes=max_bytes)

    @property
    def waiting(self) -> int:
        """Calls without an answer that somebody waits for."""
        return self._caller.waiting

    @property
    def remembered(self) -> int:
        """Calls, notifications and calls given up that the other side may still be asked after."""
        return len(self._caller)

    def request(self, kind: int, method: str, value: Any, meta: dict[str, Any], timeout: float | None) -> Call:
        """Makes a call and sends it, when there is a link.

        Raises:
            EncodeError: The value, or `meta`, is not serializable. Nothing was sent.
            RolecallError: What the peer ended with.
        """
        encoded = codec.encode(value)
        if meta:
            _check(meta)
        call = Call(self, method, value, timeout, streaming=kind == messages.STREAM)
        if kind != messages.NOTIFICATION:
            self._wait_for_room(call.deadline)
        with self._lock:
            if self.failure is not None:
                raise fresh(self.failure)
            opened = self._caller.invoke(call, kind, method, meta, encoded.header, encoded.buffers, call.deadline)
            call.opened = opened
            link, sent, invocation = self.line.link, opened.sent, opened.invocation
        if sent is None or link is None or invocation is None:
            return call
        try:
            opened.sent = sent[0], link.send(pack(messages.encode(invocation), encoded.buffers))
        except BaseException:  # Ctrl-C too: nobody will ever ask for this call
            with self._lock:
                self._caller.withdraw(opened)
            raise
        return call

    def _wait_for_room(self, deadline: float | None) -> None:
        """Blocks a thread that outruns the other side; code on an event loop is not made to wait."""
        link = self.line.link
        if link is not None:
            link.wait_for_room()
        if not self._has_room() and _get_running_loop() is None:
            self.wait(self._has_room, deadline)

    def _has_room(self) -> bool:
        return self._caller.has_room or self.failure is not None

    # What calls ask for

    def cancel(self, call: Call) -> None:
        self._give_up(call, Reason.CANCELLED)

    def expire(self, call: Call) -> None:
        self._give_up(call, Reason.EXPIRED)

    def consumed(self, call: Call) -> None:
        with self._lock:
            opened = call.opened
            sendings = self._caller.consume(opened) if opened is not None else ()
            link = self.line.link
        send(link, sendings)

    def _give_up(self, call: Call, reason: Reason) -> None:
        with self._lock:
            opened = call.opened
            if opened is None:
                return
            events, sendings = self._caller.give_up(opened, reason)
            link = self.line.link
        self._do(link, events, sendings)

    def fail_all(self, error: BaseException, *, last: bool = False) -> None:
        """Fails every call that waits; with `last`, no call is admitted any more."""
        with self._lock:
            if last and self.failure is None:
                self.failure = error
            calls = self._caller.fail_all()
        for call in calls:
            self.line.drop(call.failed(error))
        self.wake()

    # On the loop's thread

    def attach(self, remote: str) -> int:
        """Goes on over the line's link to the session `remote`; returns the link's number."""
        with self._lock:
            number, events, sendings = self._caller.attach(remote, time.monotonic())
        self._do(self.line.link, events, sendings)
        return number

    def detach(self) -> None:
        """The link is lost."""
        with self._lock:
            self._caller.detach()

    def tick(self) -> None:
        """Asks after calls that are silent, fails those whose deadline has passed."""
        with self._lock:
            events, sendings = self._caller.tick(time.monotonic(), self.line.written)
        self._do(self.line.link, events, sendings)

    def receive(self, number: int, message: Reply | Item | Status, buffers: Buffers) -> None:
        """Takes in what came on the link of this number."""
        with self._lock:
            events, sendings = self._caller.receive(number, message, buffers, time.monotonic())
        self._do(self.line.link, events, sendings)

    def _do(self, link: Link | None, events: Sequence[Event[Call]], sendings: Sequence[Sending]) -> None:
        for event in events:
            if isinstance(event, Answered):
                event.owner.answered(event.ok, event.body)
            elif isinstance(event, Arrived):
                event.owner.arrived(event.bodies)
            elif isinstance(event, Failed):
                self.line.drop(event.owner.failed(self._error(event.owner, event.reason)))
            else:
                self.line.drop(event.bodies)
        if sendings:
            send(link, sendings)
        if self._waiters and self._has_room():
            self.wake()

    def _error(self, call: Call, reason: Reason) -> Exception:
        name, method = self.line.name, call.method
        if reason is Reason.CANCELLED:
            return CallCancelledError(name, method)
        if reason is Reason.EXPIRED:
            return TimeoutError(f"{name}: {method}() had no answer within {call.timeout:g} s")
        if reason is Reason.RESTARTED:
            return RPCConnectionError(name, "the process was restarted; the call may have run")
        return RPCConnectionError(name, f"the result of {method}() is no longer kept; the call was not run again")


def _check(meta: dict[str, Any]) -> None:
    """Raises EncodeError before anybody knows of the call."""
    try:
        messages.encode(meta)
    except (TypeError, ValueError, OverflowError) as e:
        raise EncodeError("meta", type(meta).__name__, f"it takes plain values only ({e})") from e
