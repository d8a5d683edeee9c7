"""Caller: the unanswered calls of one end. A pure state machine: no thread, clock or socket.

Arguments of its methods are new calls, what arrived on which link, the time, and that a link was attached or lost; they
return messages to send and events. Its driver holds a lock around each.

**Promise.** Every call ends exactly once: `Answered` with its own answer, or `Failed` with the reason. A stream's items
come in order, none twice, and all of them before its answer. Once the network works, every call ends that the callee
answers.

**Why no id is run twice.** A call's id is (session of this end, sequence), and a sequence is given out once. An
invocation is sent again only when the callee of the same session reports the id as unknown; `Callee` refuses an id that
it has accepted. When the other end has a new session, its process was restarted and remembers nothing: calls that were
ever sent fail instead of being sent again, because the former process may have run them. Frames of a replaced link are
ignored, so a message of a former session never counts for the present one.

**How losses are repaired.** Silent calls, and all calls when a link is attached, are probed (`Probe`). The callee
sends the answer that it keeps again, or reports the call as running, unknown, or gone.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import Any, Generic, TypeVar

import msgspec

from rolecall.transport.session import messages
from rolecall.transport.session.messages import NOTIFICATION, STREAM, UNKNOWN, Body, Buffers, Sending, Tracked

WINDOW = 16  # unread items of a stream that may be in flight
ACKS_AT_ONCE = 256  # acknowledgements in one frame
MAX_CALLS = 32768
MAX_WAITING = 4096
CUMULATIVE_ACK_ROUNDS = 3  # repeated, since the frame itself may be lost
LARGE_REPLY = 256 << 10  # acknowledged at once: keeping it costs the callee more than a frame
PROBE_MAX_S = 15.0

Owner = TypeVar("Owner")


class Reason(Enum):
    """Why a call has no answer."""

    CANCELLED = "cancelled"
    EXPIRED = "expired"
    RESTARTED = "restarted"
    GONE = "gone"


class Answered(msgspec.Struct, Generic[Owner], gc=False):
    """The call is answered and done."""

    owner: Owner
    ok: bool
    body: Body


class Arrived(msgspec.Struct, Generic[Owner], gc=False):
    """The next item of a stream."""

    owner: Owner
    body: Body


class Failed(msgspec.Struct, Generic[Owner], gc=False):
    """The call will not be answered and is done."""

    owner: Owner
    reason: Reason


class Unread(msgspec.Struct, gc=False):
    """A value that arrived for a call that was cancelled or has expired; it is dropped."""

    body: Body


Event = Answered[Owner] | Arrived[Owner] | Failed[Owner] | Unread
Output = tuple[Sequence[Event[Owner]], Sequence[Sending]]


class IncomingStream:
    """The items of one stream that is being received: in order, without duplicates."""

    __slots__ = ("arrived", "consumed", "credited", "probed_at")

    def __init__(self) -> None:
        self.arrived = 0  # items below this index have come, all of them
        self.consumed = 0
        self.credited = 0
        self.probed_at = float("-inf")


class OpenCall(Tracked, Generic[Owner], eq=False, kw_only=True):
    """One call that may still have to be probed.

    Attributes:
        owner: The driver's object for this call. Opaque to the machine.
        invocation: Kept until the callee is known to have accepted it.
        size: Bytes of the invocation.
        abandoned: Cancelled or expired here; remembered until the callee is known to have been told.
    """

    owner: Owner
    seq: int
    is_notification: bool
    stream: IncomingStream | None
    invocation: messages.Invocation | None
    buffers: Buffers
    size: int
    deadline: float | None
    abandoned: bool = False
    probe_at: float = 0.0
    probe_wait: float = 0.0

    def progress(self) -> messages.Progress:
        """What the callee must know of it."""
        arrived, consumed = (0, 0) if self.stream is None else (self.stream.arrived, self.stream.consumed)
        return messages.Progress(self.seq, arrived, consumed, self.abandoned)


class Caller(Generic[Owner]):
    """The caller's half of a session; see the module's docstring.

    Args:
        window: Unread items of a stream that may be in flight.
        probe: Seconds after which a silent call is probed; doubles up to 15 s while it runs.
        max_bytes: Bytes of unanswered requests above which `has_room` is False.

    Attributes:
        waiting: Calls without an answer, not counting abandoned ones and notifications.
    """

    def __init__(self, *, window: int = WINDOW, probe: float = 1.0, max_bytes: int = 256 << 20) -> None:
        self.window = window
        self.waiting = 0
        self._probe_s, self._max_bytes = probe, max_bytes
        self._open: dict[int, OpenCall[Owner]] = {}
        self._bytes = 0
        self._next = 0
        self._link = 0  # number of the newest link
        self._attached = False
        self._remote = ""
        self._acks: list[int] = []
        self._answered_below = 0
        self._rounds = 0
        self._next_at_tick = 0

    def __len__(self) -> int:
        """Calls that are remembered, notifications and abandoned calls included."""
        return len(self._open)

    @property
    def busy(self) -> bool:
        """Whether `tick` has something to do, now or later."""
        return self.waiting > 0 or (self._attached and bool(self._open or self._acks or self._rounds))

    @property
    def has_room(self) -> bool:
        """Whether a caller may go on; otherwise it should wait."""
        return self._bytes <= self._max_bytes and self.waiting < MAX_CALLS

    # What this side does

    def invoke(
        self,
        owner: Owner,
        kind: int,
        method: str,
        meta: dict[str, Any],
        body: bytes,
        buffers: Buffers = (),
        deadline: float | None = None,
    ) -> OpenCall[Owner]:
        """Adds a call. If its `sent` is not None, the driver sends its `invocation` now; else it waits for a link."""
        seq = self._next
        self._next = seq + 1
        acks = self._take_acks() if self._acks and self._attached else ()
        size = len(body) + (sum(b.nbytes for b in buffers) if buffers else 0)
        self._open[seq] = call = OpenCall(
            sent=(self._link, UNKNOWN) if self._attached else None,  # from here on it may have been accepted
            owner=owner,
            seq=seq,
            is_notification=kind == NOTIFICATION,
            stream=IncomingStream() if kind == STREAM else None,
            invocation=messages.Invocation(seq, kind, method, meta, self.window, acks, body),
            buffers=buffers,
            size=size,
            deadline=deadline,
        )
        self._bytes += size
        self.waiting += kind != NOTIFICATION
        return call

    def withdraw(self, call: OpenCall[Owner]) -> None:
        """Removes a call that could not be sent, without an event."""
        if self._open.pop(call.seq, None) is not None:
            self._release(call)

    def abandon(self, call: OpenCall[Owner], reason: Reason) -> Output[Owner]:
        """Fails a call and tells the callee. Nothing happens when it is done already."""
        if call.abandoned or self._open.get(call.seq) is not call:
            return (), ()
        events = self._fail(call, reason)
        call.abandoned = True
        call.invocation, call.buffers = None, ()
        if call.sent is None:  # it was never sent
            del self._open[call.seq]
            return events, ()
        return events, ((call.progress(), (), None),) if self._attached else ()

    def consume(self, call: OpenCall[Owner], total: int) -> Sequence[Sending]:
        """The reader has taken so many items of a stream."""
        stream = call.stream
        if stream is None:
            return ()
        stream.consumed = max(stream.consumed, total)
        if stream.consumed - stream.credited < max(1, self.window // 2):
            return ()
        stream.credited = stream.consumed
        return ((call.progress(), (), None),) if self._attached else ()

    def fail_all(self) -> list[Owner]:
        """Removes every call; returns the owners of those that must fail."""
        owners = [call.owner for call in self._open.values() if not call.abandoned and not call.is_notification]
        self._open.clear()
        self._bytes = self.waiting = 0
        return owners

    # Links and time

    def attach(self, remote: str, now: float) -> tuple[int, Sequence[Event[Owner]], Sequence[Sending]]:
        """Continues over a new link with the session `remote` ("" where it is not known).

        Returns:
            The link's number, for `receive`; what failed; what to send: calls that were never sent, and a probe for the
            rest.
        """
        self._link += 1
        self._attached = True
        events: Sequence[Event[Owner]] = ()
        if remote and self._remote and remote != self._remote:
            events = self._restarted()
        self._remote = remote or self._remote
        if self._answered_below:
            self._rounds = CUMULATIVE_ACK_ROUNDS  # acknowledgements may have been lost with the former link
        probed: list[messages.Progress] = []
        sendings: list[Sending] = []
        for call in self._open.values():
            if call.sent is not None:
                probed.append(call.progress())
            else:
                sendings += self._send(call)
            call.probe_at, call.probe_wait = now + self._probe_s, self._probe_s
        return self._link, events, [*sendings, *_probes(probed)]

    def detach(self) -> None:
        """The link is lost; calls wait for the next one."""
        self._attached = False

    def tick(self, now: float, written: int) -> Output[Owner]:
        """Fails calls whose deadline has passed, probes those that are silent, and sends acknowledgements.

        While there are new calls, these carry the acknowledgements.

        Args:
            written: Bytes sent on the present link that are in the kernel.
        """
        quiet, self._next_at_tick = self._next == self._next_at_tick, self._next
        events: list[Event[Owner]] = []
        sendings: list[Sending] = []
        probed = []
        for call in list(self._open.values()):
            if call.deadline is not None and call.deadline <= now and not call.abandoned:
                failed, cancels = self.abandon(call, Reason.EXPIRED)
                events += failed
                sendings += cancels
            elif call.probe_wait == 0.0:
                call.probe_at, call.probe_wait = now + self._probe_s, self._probe_s
            elif call.probe_at <= now and self._attached and not call.queued(self._link, written):
                call.probe_at = now + call.probe_wait
                probed.append(call.progress())
        if self._attached:
            sendings += _probes(probed)
            if quiet:
                sendings += self._acknowledgements()
        return events, sendings

    # What arrives

    def receive(self, link: int, message: messages.ToCaller, buffers: Buffers, now: float) -> Output[Owner]:
        """Handles a message that came on the link of number `link`."""
        if link != self._link or not self._attached:
            return (), ()
        if isinstance(message, messages.Reply):
            return self._on_reply(message, buffers, now)
        if isinstance(message, messages.Item):
            return self._on_item(message, buffers, now)
        return self._on_status(message, now)

    def _on_reply(self, reply: messages.Reply, buffers: Buffers, now: float) -> Output[Owner]:
        call = self._open.get(reply.seq)
        if call is None:
            return (), self._acknowledge(reply.seq, 0) if reply.seq < self._next else ()
        stream = call.stream
        if stream is not None and not call.abandoned and stream.arrived < reply.items:
            return (), self._probe_gap(call, stream, now)  # it is sent again, with the items that are missing
        del self._open[call.seq]
        body = reply.body, buffers
        sendings = self._acknowledge(call.seq, sum(map(len, buffers)) if buffers else 0)
        if call.abandoned:
            return ((Unread(body),) if reply.ok else ()), sendings
        self._release(call)
        return (() if call.is_notification else (Answered(call.owner, reply.ok, body),)), sendings

    def _on_item(self, item: messages.Item, buffers: Buffers, now: float) -> Output[Owner]:
        call = self._open.get(item.seq)
        if call is None or call.stream is None:
            return (), ()
        body = item.body, buffers
        if call.abandoned:
            return (Unread(body),), ()
        stream = call.stream
        call.probe_at, call.probe_wait = now + self._probe_s, self._probe_s
        if item.index != stream.arrived or item.index >= stream.consumed + 2 * self.window:
            # It came before; or others are missing, with which it is sent again.
            return (), self._probe_gap(call, stream, now) if item.index > stream.arrived else ()
        stream.arrived += 1
        return (Arrived(call.owner, body),), ()

    def _on_status(self, status: messages.Status, now: float) -> Output[Owner]:
        for call in filter(None, map(self._open.get, status.running)):
            call.invocation, call.buffers = None, ()  # accepted, so it is never sent again
            call.probe_wait = min(call.probe_wait * 2, PROBE_MAX_S)
        events: list[Event[Owner]] = []
        sendings: list[Sending] = []
        for call in filter(None, map(self._open.get, status.unknown)):
            if call.abandoned:
                del self._open[call.seq]
            else:
                call.probe_at, call.probe_wait = now + self._probe_s, self._probe_s
                sendings += self._send(call)
        for call in filter(None, map(self._open.get, status.gone)):
            del self._open[call.seq]
            events += self._fail(call, Reason.GONE)
        return events, sendings

    # Parts of the above

    def _send(self, call: OpenCall[Owner]) -> Sequence[Sending]:
        if call.invocation is None:
            return ()
        call.sent = self._link, UNKNOWN
        return ((call.invocation, call.buffers, call),)

    def _release(self, call: OpenCall[Owner]) -> None:
        self._bytes -= call.size
        self.waiting -= not call.is_notification

    def _fail(self, call: OpenCall[Owner], reason: Reason) -> Sequence[Event[Owner]]:
        """The events of a call that will not be answered."""
        if call.abandoned:
            return ()
        self._release(call)
        return () if call.is_notification else (Failed(call.owner, reason),)

    def _restarted(self) -> Sequence[Event[Owner]]:
        """The other process is a new one: calls sent to the former one may have run, and will not be answered."""
        self._acks.clear()
        self._answered_below = self._rounds = 0
        events: list[Event[Owner]] = []
        for call in [call for call in self._open.values() if call.sent is not None]:
            del self._open[call.seq]
            events += self._fail(call, Reason.RESTARTED)
        return events

    def _probe_gap(self, call: OpenCall[Owner], stream: IncomingStream, now: float) -> Sequence[Sending]:
        """Probes at once for missing items of a stream, but not again for each item behind the same gap."""
        if now - stream.probed_at <= self._probe_s / 20:
            return ()
        stream.probed_at = now
        return ((messages.Probe([call.progress()]), (), None),)

    # Acknowledgements

    def _acknowledge(self, seq: int, size: int) -> Sequence[Sending]:
        self._acks.append(seq)
        if seq >= self._answered_below:
            self._answered_below = seq + 1
        self._rounds = CUMULATIVE_ACK_ROUNDS
        if size >= LARGE_REPLY or len(self._acks) >= ACKS_AT_ONCE:
            return ((messages.Ack(self._take_acks()), (), None),)
        return ()

    def _take_acks(self) -> Sequence[int]:
        """Acknowledgements for the next frame."""
        taken = self._acks[:ACKS_AT_ONCE]
        del self._acks[:ACKS_AT_ONCE]
        return taken

    def _acknowledgements(self) -> list[Sending]:
        """New acknowledgements, and, a few times after the last answer, a cumulative one in case some were lost."""
        sendings: list[Sending] = [(messages.Ack(self._take_acks()), (), None)] if self._acks else []
        if self._rounds:
            self._rounds -= 1
            below = self._answered_below
            waiting = [seq for seq in self._open if seq < below]
            if len(waiting) <= MAX_WAITING:
                sendings.append((messages.CumulativeAck(below, waiting), (), None))
        return sendings


def _probes(probed: list[messages.Progress]) -> list[Sending]:
    most = messages.PROBED_AT_ONCE
    return [(messages.Probe(probed[at : at + most]), (), None) for at in range(0, len(probed), most)]
