"""Callee: the calls that one end has accepted, and their answers until they have arrived. A pure state machine.

It has no thread, clock or socket. Arguments of its methods are what arrived on which link, what the engine answered,
and that a link was attached or lost; they return messages to send and events. Its driver holds a lock around each.

**Promise.** Each call id is accepted at most once in the life of the caller's session. Its answer is kept until the
caller has acknowledged it, and is sent again at each probe. Answers are bounded in number and bytes: beyond the bound
the oldest are dropped, and a probe for one of these is answered with `gone`.

**Why no id is run twice.** Every accepted sequence is remembered (`SequenceSet`: a few intervals), also when its answer
is not, and a remembered sequence is never accepted again. They are forgotten only when the other end has a new session,
whose sequences start at 0. Messages on a link of the former session are ignored, so none of its invocations counts for
the present session. An answer belongs to an `AcceptedCall`, not to a number, so late answers to calls of the former
session are dropped.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import Generic, TypeVar

import msgspec

from rolecall.transport.session import messages
from rolecall.transport.session.messages import STREAM, UNKNOWN, Buffers, Sending, Tracked

MAX_ANSWERS = 65536
MAX_ANSWER_BYTES = 4 << 30

Owner = TypeVar("Owner")


class SequenceSet:
    """Which call ids were taken. They come mostly in order; its size grows with the gaps between them.

    Attributes:
        intervals: First and last number of each closed interval, in order.
    """

    __slots__ = ("intervals",)

    def __init__(self) -> None:
        self.intervals: list[list[int]] = []

    def __contains__(self, number: int) -> bool:
        at = bisect_right(self.intervals, [number, number])
        return any(first <= number <= last for first, last in self.intervals[max(0, at - 1) : at + 1])

    def add(self, number: int) -> bool:
        """Adds `number`; False when it was there already."""
        intervals = self.intervals
        if intervals and number == intervals[-1][1] + 1:
            intervals[-1][1] = number
            return True
        if number in self:
            return False
        at = bisect_right(intervals, [number, number])
        low = at - (at > 0 and intervals[at - 1][1] == number - 1)
        high = at + (at < len(intervals) and intervals[at][0] == number + 1)
        joined = [number, *(end for interval in intervals[low:high] for end in interval)]
        intervals[low:high] = [[min(joined), max(joined)]]
        return True


class OutgoingStream:
    """The items of one stream that is being sent."""

    __slots__ = ("consumed", "emitted", "items", "window")

    def __init__(self, window: int) -> None:
        self.window = window
        self.emitted = self.consumed = 0
        self.items: dict[int, tuple[messages.Item, Buffers]] = {}  # sent and not yet consumed

    def credit(self, consumed: int) -> None:
        """The caller has consumed so many items; these are never sent again."""
        consumed = min(consumed, self.emitted)
        for index in range(self.consumed, consumed):
            self.items.pop(index, None)
        self.consumed = max(self.consumed, consumed)


class AcceptedCall(Tracked, Generic[Owner], eq=False, kw_only=True):
    """One accepted call.

    Attributes:
        owner: The driver's object for this call, set when it handles `Accepted`. Opaque to the machine.
        cancelled: The caller has cancelled.
        reply: The answer, until it is acknowledged.
        answered: It has been answered.
        released: Its answer is acknowledged or dropped, or the session has ended.
        zero_copy_link: Number of the only link that may carry the answer, whose buffers are the engine's own memory; 0
            when they are a copy.
    """

    seq: int
    stream: OutgoingStream | None
    owner: Owner | None = None
    cancelled: bool = False
    answered: bool = False
    released: bool = False
    reply: messages.Reply | None = None
    buffers: Buffers = ()
    size: int = 0
    zero_copy_link: int = 0

    @property
    def emitted(self) -> int:
        """Number of items emitted so far."""
        return 0 if self.stream is None else self.stream.emitted

    @property
    def has_room(self) -> bool:
        """Whether `emit` need not wait: the window has room, or items are no longer sent."""
        if self.cancelled or self.answered or self.released or self.stream is None:
            return True
        return self.stream.emitted - self.stream.consumed < self.stream.window


class Accepted(msgspec.Struct, Generic[Owner], gc=False):
    """A call was accepted and must be run. It happens once for each id."""

    call: AcceptedCall[Owner]
    invocation: messages.Invocation
    buffers: Buffers


class Changed(msgspec.Struct, Generic[Owner], gc=False):
    """The call was cancelled, its window has room, or its answer has arrived. Waiters must check again."""

    owner: Owner


Event = Accepted[Owner] | Changed[Owner]
Output = tuple[Sequence[Event[Owner]], Sequence[Sending]]


class Callee(Generic[Owner]):
    """The callee's half of a session; see the module's docstring.

    Args:
        max_answers: Answers that are kept.
        max_bytes: Bytes of answers that are kept; one answer is kept whatever its size.
    """

    def __init__(self, *, max_answers: int = MAX_ANSWERS, max_bytes: int = MAX_ANSWER_BYTES) -> None:
        self._max_answers, self._max_bytes = max_answers, max_bytes
        self._accepted = SequenceSet()
        self._calls: dict[int, AcceptedCall[Owner]] = {}
        self._answers: dict[int, AcceptedCall[Owner]] = {}  # those that are answered, oldest answer first
        self._bytes = 0
        self._link = 0
        self._attached = False
        self._remote = ""
        self._closed = False

    def __len__(self) -> int:
        """Calls that run, or whose answer is not acknowledged."""
        return len(self._calls)

    @property
    def zero_copy_pending(self) -> bool:
        """Whether an answer is kept in the engine's own memory."""
        return any(call.zero_copy_link for call in self._answers.values())

    # Links

    def attach(self, remote: str) -> tuple[int, Sequence[Event[Owner]]]:
        """Continues over a new link with the session `remote` ("" where it is not known); returns the link's number."""
        self._link += 1
        self._attached = True
        events: Sequence[Event[Owner]] = ()
        if remote and self._remote and remote != self._remote:
            events = self._forget()
            self._accepted = SequenceSet()
        self._remote = remote or self._remote
        return self._link, events

    def detach(self) -> Sequence[Event[Owner]]:
        """The link is lost, and zero-copy answers with it: their owners must check again."""
        self._attached = False
        pending = [call.owner for call in self._answers.values() if call.zero_copy_link]
        return [Changed(owner) for owner in pending if owner is not None]

    def close(self) -> Sequence[Event[Owner]]:
        """Ends every call: those that run are cancelled, answers are dropped, no further call is accepted."""
        self._closed = True
        return self._forget()

    def _forget(self) -> Sequence[Event[Owner]]:
        calls = list(self._calls.values())
        self._calls.clear()
        self._answers.clear()
        self._bytes = 0
        events: list[Event[Owner]] = []
        for call in calls:
            call.released = call.cancelled = True
            events += _changed(call)
            call.owner = None
        return events

    # What the engine answers

    def emit(self, call: AcceptedCall[Owner], body: bytes, buffers: Buffers) -> Sequence[Sending]:
        """Adds an item to a stream; does nothing once the call is cancelled or answered."""
        stream = call.stream
        if call.cancelled or call.answered or call.released or stream is None:
            return ()
        item = messages.Item(call.seq, stream.emitted, body)
        stream.items[stream.emitted] = item, buffers
        stream.emitted += 1
        return self._send(call, item, buffers)

    def answer(
        self, call: AcceptedCall[Owner], ok: bool, body: bytes, buffers: Buffers, *, zero_copy: bool = False
    ) -> Output[Owner]:
        """Answers a call; later answers to it are dropped.

        Args:
            zero_copy: `buffers` are the engine's own memory, so the answer is sent on the present link only, until
                `replace` provides a copy.
        """
        already, call.answered = call.answered, True
        if already or call.released:
            return (), ()
        call.reply = reply = messages.Reply(call.seq, ok, 0 if call.stream is None else call.stream.emitted, body)
        call.buffers = buffers
        call.zero_copy_link = self._link if zero_copy else 0
        call.size = len(body) + (sum(map(len, buffers)) if buffers else 0)
        self._answers[call.seq] = call
        self._bytes += call.size
        sendings = self._send(call, reply, buffers)
        if len(self._answers) > self._max_answers or self._bytes > self._max_bytes:
            return self._evict(), sendings
        return (), sendings

    def sending_zero_copy(self, call: AcceptedCall[Owner]) -> bool:
        """Whether a zero-copy answer may still arrive on its link."""
        return not call.released and self._attached and call.zero_copy_link == self._link

    def replace(self, call: AcceptedCall[Owner], buffers: Buffers) -> Sequence[Sending]:
        """Replaces the buffers of a zero-copy answer by a copy, and sends it again."""
        if call.released or call.reply is None:
            return ()
        call.buffers, call.zero_copy_link = buffers, 0
        return self._send(call, call.reply, buffers)

    def _send(self, call: AcceptedCall[Owner], message: messages.Message, buffers: Buffers) -> Sequence[Sending]:
        if not self._attached:
            return ()
        call.sent = self._link, UNKNOWN
        return ((message, buffers, call),)

    def _evict(self) -> Sequence[Event[Owner]]:
        events: list[Event[Owner]] = []
        while len(self._answers) > self._max_answers or (self._bytes > self._max_bytes and len(self._answers) > 1):
            events += self._drop(next(iter(self._answers)))
        return events

    def _drop(self, seq: int) -> Sequence[Event[Owner]]:
        """Drops an answer that was acknowledged or is evicted."""
        call = self._answers.pop(seq, None)
        if call is None:
            return ()
        del self._calls[seq]
        self._bytes -= call.size
        call.released = True
        call.reply, call.buffers, call.stream = None, (), None
        events = _changed(call) if call.zero_copy_link else ()
        call.owner = None
        return events

    # What arrives

    def receive(self, link: int, message: messages.ToCallee, buffers: Buffers, written: int) -> Output[Owner]:
        """Handles a message that came on the link of number `link`.

        Args:
            written: Bytes sent on that link that are in the kernel.
        """
        if link != self._link or not self._attached or self._closed:
            return (), ()
        if isinstance(message, messages.Invocation):
            return self._on_invocation(message, buffers, written)
        if isinstance(message, messages.Ack):
            return self._on_ack(message.seqs), ()
        if isinstance(message, messages.Probe):
            return self._on_probe(message, written)
        if isinstance(message, messages.CumulativeAck):
            kept = set(message.waiting)
            return self._on_ack([seq for seq in self._answers if seq < message.below and seq not in kept]), ()
        call = self._calls.get(message.seq)
        if call is None:
            return (), ()
        return _told(call, message), ()

    def _on_invocation(self, invocation: messages.Invocation, buffers: Buffers, written: int) -> Output[Owner]:
        events = self._on_ack(invocation.acks) if invocation.acks else ()
        seq = invocation.seq
        if self._accepted.add(seq):
            stream = OutgoingStream(max(1, invocation.window)) if invocation.kind == STREAM else None
            call: AcceptedCall[Owner] = AcceptedCall(seq=seq, stream=stream)
            self._calls[seq] = call
            return (*events, Accepted(call, invocation, buffers)), ()
        known = self._calls.get(seq)
        if known is None:
            return events, ((messages.Status([], [], [seq]), (), None),)
        return events, (self._send_again(known, 0, written) if known.answered else ())

    def _on_ack(self, seqs: Sequence[int]) -> Sequence[Event[Owner]]:
        events: list[Event[Owner]] = []
        for seq in seqs:
            if dropped := self._drop(seq):
                events += dropped
        return events

    def _on_probe(self, probe: messages.Probe, written: int) -> Output[Owner]:
        status = messages.Status([], [], [])
        events: list[Event[Owner]] = []
        sendings: list[Sending] = []
        for probed in probe.calls:
            call = self._calls.get(probed.seq)
            if call is None:
                (status.gone if probed.seq in self._accepted else status.unknown).append(probed.seq)
                continue
            events += _told(call, probed)
            if not call.answered:
                status.running.append(probed.seq)
            sendings += self._send_again(call, probed.arrived, written)
        if status.running or status.unknown or status.gone:
            sendings.append((status, (), None))
        return events, sendings

    def _send_again(self, call: AcceptedCall[Owner], arrived: int, written: int) -> Sequence[Sending]:
        if call.queued(self._link, written):
            return ()
        sendings: list[Sending] = []
        if call.stream is not None:
            for index, (item, buffers) in call.stream.items.items():
                if index >= arrived:
                    sendings += self._send(call, item, buffers)
        if call.reply is not None and call.zero_copy_link in (0, self._link):
            sendings += self._send(call, call.reply, call.buffers)
        return sendings


def _told(call: AcceptedCall[Owner], progress: messages.Progress) -> Sequence[Event[Owner]]:
    """Takes note of what the caller says of its call."""
    call.cancelled |= progress.cancelled
    if call.stream is not None:
        call.stream.credit(progress.consumed)
    return _changed(call)


def _changed(call: AcceptedCall[Owner]) -> Sequence[Event[Owner]]:
    return () if call.owner is None else (Changed(call.owner),)
