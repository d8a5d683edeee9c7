"""Callee: what one end was asked by the other, and its answers until they have arrived. A pure state machine.

It has no thread, clock or socket. It is told what arrived on which link, what the engine answered, and that a link was
attached or lost; it returns the messages to send and the events that happened. Whoever drives it holds a lock around
each method.

**Promise.** Each call id is handed out (`Take`) at most once in the life of the caller's session. Its answer is kept
until the caller has said that it has it, and is sent again as often as the caller asks. Answers are bounded in number
and bytes: beyond the bound the oldest are dropped, and a caller that asks for one is told that it is gone.

**Why no id is run twice.** Every sequence that was ever taken is remembered (`SequenceSet`: a few intervals), also when
its answer is not, and what is known is never taken again. Ids are forgotten only when the other end has a new session,
whose sequences start anew; what a link of the former session still carries is not looked at, so no invocation of the
former session is taken for one of the present. An answer belongs to the object that was handed out and not to its
number, so what the former session's calls still answer reaches nobody.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, TypeVar

import msgspec

from rolecall.transport.session.messages import (
    STREAM,
    Ack,
    Buffers,
    Cancel,
    Credit,
    Invocation,
    Item,
    Probe,
    Reply,
    Settled,
    Status,
)
from rolecall.transport.session.sending import UNKNOWN, Sending, Tracked
from rolecall.transport.session.sequences import SequenceSet

MAX_ANSWERS = 65536
MAX_ANSWER_BYTES = 4 << 30

Owner = TypeVar("Owner")


class Outflow:
    """The items of one stream on their way out."""

    __slots__ = ("consumed", "emitted", "items", "window")

    def __init__(self, window: int) -> None:
        self.window = window
        self.emitted = self.consumed = 0
        self.items: dict[int, tuple[Item, Buffers]] = {}  # sent and not yet consumed

    def credit(self, consumed: int) -> None:
        """The reader has taken so many items; they need not be sent again."""
        consumed = min(consumed, self.emitted)
        for index in range(self.consumed, consumed):
            self.items.pop(index, None)
        self.consumed = max(self.consumed, consumed)


class TakenCall(Tracked, Generic[Owner]):
    """One call that was taken.

    Attributes:
        owner: Who is told of it, set by whoever handles `Take`; the machine never looks inside.
        cancelled: The caller has given up.
        reply: The one answer, until it has arrived.
        answered: There is, or was, an answer.
        released: The answer has arrived, or nobody waits for it any more.
    """

    __slots__ = (
        "answered",
        "buffers",
        "cancelled",
        "lent_on",
        "outflow",
        "owner",
        "released",
        "reply",
        "seq",
        "size",
    )

    def __init__(self, invocation: Invocation) -> None:
        self.sent = None
        self.owner: Owner | None = None
        self.seq = invocation.seq
        self.outflow = Outflow(max(1, invocation.window)) if invocation.kind == STREAM else None
        self.cancelled = self.answered = self.released = False
        self.reply: Reply | None = None
        self.buffers: Buffers = ()
        self.size = 0
        self.lent_on = 0  # the reply lies in memory of the engine, lent for the link of this number alone

    @property
    def emitted(self) -> int:
        """How many items were made."""
        return 0 if self.outflow is None else self.outflow.emitted

    @property
    def has_room(self) -> bool:
        """Whether `emit` need not wait: the window has room, or nobody takes items any more."""
        if self.cancelled or self.answered or self.released or self.outflow is None:
            return True
        return self.outflow.emitted - self.outflow.consumed < self.outflow.window


class Take(msgspec.Struct, Generic[Owner], gc=False):
    """Run this call. It happens once for each id."""

    call: TakenCall[Owner]
    invocation: Invocation
    buffers: Buffers


class Cancelled(msgspec.Struct, Generic[Owner], gc=False):
    """The caller has given up a call that was taken."""

    owner: Owner


class Changed(msgspec.Struct, Generic[Owner], gc=False):
    """The call's window has room, or its answer has arrived: whoever waits for that looks again."""

    owner: Owner


Event = Take[Owner] | Cancelled[Owner] | Changed[Owner]
Output = tuple[Sequence[Event[Owner]], Sequence[Sending]]


class Callee(Generic[Owner]):
    """The callee's half of a session; see the module's text.

    Args:
        max_answers: Answers that are kept.
        max_bytes: Bytes of answers that are kept; one answer is kept whatever its size.
    """

    def __init__(self, *, max_answers: int = MAX_ANSWERS, max_bytes: int = MAX_ANSWER_BYTES) -> None:
        self._max_answers, self._max_bytes = max_answers, max_bytes
        self._taken = SequenceSet()
        self._calls: dict[int, TakenCall[Owner]] = {}
        self._answers: dict[int, TakenCall[Owner]] = {}  # those that are answered, oldest answer first
        self._bytes = 0
        self._link = 0
        self._attached = False
        self._remote = ""
        self._closed = False

    def __len__(self) -> int:
        """Calls that are remembered: they run, or their answer has not arrived."""
        return len(self._calls)

    @property
    def lending(self) -> bool:
        """Whether some answer lies in memory that is only lent."""
        return any(call.lent_on for call in self._answers.values())

    # Links

    def attach(self, remote: str) -> tuple[int, Sequence[Event[Owner]]]:
        """Goes on over a new link to the session `remote` ("" where it is not known); returns the link's number."""
        self._link += 1
        self._attached = True
        events: Sequence[Event[Owner]] = ()
        if remote and self._remote and remote != self._remote:
            events = self._forget()
            self._taken = SequenceSet()
        self._remote = remote or self._remote
        return self._link, events

    def detach(self) -> Sequence[Event[Owner]]:
        """The link is lost. Owners of lent answers look again: theirs will not arrive on it."""
        self._attached = False
        return [Changed(call.owner) for call in self._answers.values() if call.lent_on and call.owner is not None]

    def close(self) -> Sequence[Event[Owner]]:
        """Ends every call: those that run are cancelled, answers are forgotten, nothing is taken any more."""
        self._closed = True
        return self._forget()

    def _forget(self) -> Sequence[Event[Owner]]:
        calls = list(self._calls.values())
        self._calls.clear()
        self._answers.clear()
        self._bytes = 0
        events: list[Event[Owner]] = []
        for call in calls:
            call.released = True
            events += _cancel(call)
            if call.owner is not None:
                events.append(Changed(call.owner))
                call.owner = None
        return events

    # What the engine answers

    def emit(self, call: TakenCall[Owner], body: bytes, buffers: Buffers) -> Sequence[Sending]:
        """Adds an item to a stream; does nothing once the call is cancelled or answered."""
        outflow = call.outflow
        if call.cancelled or call.answered or call.released or outflow is None:
            return ()
        item = Item(call.seq, outflow.emitted, body)
        outflow.items[outflow.emitted] = item, buffers
        outflow.emitted += 1
        return self._send(call, item, buffers)

    def answer(
        self, call: TakenCall[Owner], ok: bool, body: bytes, buffers: Buffers, *, lent: bool = False
    ) -> Output[Owner]:
        """Gives a call its one answer; later ones are dropped.

        Args:
            lent: `buffers` are the engine's own memory: the answer is sent on the present link and no other. `replace`
                puts a copy in its place.
        """
        if call.answered:
            return (), ()
        call.answered = True
        if call.released:
            return (), ()
        call.reply = reply = Reply(call.seq, ok, 0 if call.outflow is None else call.outflow.emitted, body)
        call.buffers = buffers
        call.lent_on = self._link if lent else 0
        call.size = len(body) + (sum(map(len, buffers)) if buffers else 0)
        self._answers[call.seq] = call
        self._bytes += call.size
        sendings = self._send(call, reply, buffers)
        if len(self._answers) > self._max_answers or self._bytes > self._max_bytes:
            return self._evict(), sendings
        return (), sendings

    def on_loan(self, call: TakenCall[Owner]) -> bool:
        """Whether a lent answer may still arrive from the memory that it was lent in."""
        return not call.released and self._attached and call.lent_on == self._link

    def replace(self, call: TakenCall[Owner], buffers: Buffers) -> Sequence[Sending]:
        """Puts the same answer, in memory of its own, in place of a lent one; it is sent again."""
        if call.released or call.reply is None:
            return ()
        call.buffers, call.lent_on = buffers, 0
        return self._send(call, call.reply, buffers)

    def _send(self, call: TakenCall[Owner], message: Reply | Item, buffers: Buffers) -> Sequence[Sending]:
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
        """Forgets an answer that is no longer needed, or no longer kept."""
        call = self._answers.pop(seq, None)
        if call is None:
            return ()
        del self._calls[seq]
        self._bytes -= call.size
        call.released = True
        call.reply, call.buffers, call.outflow = None, (), None
        owner, call.owner = call.owner, None
        return (Changed(owner),) if call.lent_on and owner is not None else ()

    # What arrives

    def receive(
        self,
        link: int,
        message: Invocation | Ack | Credit | Cancel | Settled | Probe,
        buffers: Buffers,
        written: int,
    ) -> Output[Owner]:
        """Takes a message in that came on the link of number `link`.

        Args:
            written: Bytes that the kernel has taken of what was sent on that link.
        """
        if link != self._link or not self._attached or self._closed:
            return (), ()
        if isinstance(message, Invocation):
            return self._on_invocation(message, buffers, written)
        if isinstance(message, Ack):
            return self._on_ack(message.seqs), ()
        if isinstance(message, Probe):
            return self._on_probe(message, written)
        if isinstance(message, Settled):
            return self._on_settled(message), ()
        call = self._calls.get(message.seq)
        if call is None:
            return (), ()
        return (_cancel(call) if isinstance(message, Cancel) else _credit(call, message.consumed)), ()

    def _on_invocation(self, invocation: Invocation, buffers: Buffers, written: int) -> Output[Owner]:
        events = self._on_ack(invocation.acks) if invocation.acks else ()
        seq = invocation.seq
        if self._taken.add(seq):
            call: TakenCall[Owner] = TakenCall(invocation)
            self._calls[seq] = call
            return (*events, Take(call, invocation, buffers)), ()
        known = self._calls.get(seq)
        if known is None:
            return events, ((Status([], [], [seq]), (), None),)
        return events, (self._send_again(known, 0, written) if known.answered else ())

    def _on_ack(self, seqs: Sequence[int]) -> Sequence[Event[Owner]]:
        events: list[Event[Owner]] = []
        for seq in seqs:
            if dropped := self._drop(seq):
                events += dropped
        return events

    def _on_settled(self, settled: Settled) -> Sequence[Event[Owner]]:
        kept = set(settled.waiting)
        return self._on_ack([seq for seq in self._answers if seq < settled.below and seq not in kept])

    def _on_probe(self, probe: Probe, written: int) -> Output[Owner]:
        status = Status([], [], [])
        events: list[Event[Owner]] = []
        sendings: list[Sending] = []
        for asked in probe.calls:
            call = self._calls.get(asked.seq)
            if call is None:
                (status.gone if asked.seq in self._taken else status.unknown).append(asked.seq)
                continue
            if asked.cancelled:
                events += _cancel(call)
            events += _credit(call, asked.consumed)
            if not call.answered:
                status.running.append(asked.seq)
            sendings += self._send_again(call, asked.arrived, written)
        if status.running or status.unknown or status.gone:
            sendings.append((status, (), None))
        return events, sendings

    def _send_again(self, call: TakenCall[Owner], arrived: int, written: int) -> Sequence[Sending]:
        if call.queued(self._link, written):
            return ()
        sendings: list[Sending] = []
        if call.outflow is not None:
            for index, (item, buffers) in call.outflow.items.items():
                if index >= arrived:
                    sendings += self._send(call, item, buffers)
        if call.reply is not None and call.lent_on in (0, self._link):
            sendings += self._send(call, call.reply, call.buffers)
        return sendings


def _cancel(call: TakenCall[Owner]) -> Sequence[Event[Owner]]:
    if call.cancelled:
        return ()
    call.cancelled = True
    return (Cancelled(call.owner),) if call.owner is not None else ()


def _credit(call: TakenCall[Owner], consumed: int) -> Sequence[Event[Owner]]:
    if call.outflow is None:
        return ()
    call.outflow.credit(consumed)
    return (Changed(call.owner),) if call.owner is not None else ()
