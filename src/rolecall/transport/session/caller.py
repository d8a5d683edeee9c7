"""Caller: the calls that one end has made and has no answer to. A pure state machine: no thread, clock or socket.

It is told what is asked, what arrived on which link, the time, and that a link was attached or lost; it returns the
messages to send and the events that happened. Whoever drives it holds a lock around each method.

**Promise.** Every call that was admitted ends exactly once: `Answered` with its own answer, or `Failed` with the
reason. A stream's items come in order, none twice, and all of them before its answer. Once the network behaves, every
call ends whose callee answers it.

**Why no id is run twice.** A call's id is (session of this end, sequence), and a sequence is given out once. An
invocation is sent again only when the callee of the same session says that it does not know the id; that the callee
refuses an id it has taken is `Callee`'s part. When the other end has a new session, its process was restarted and
remembers nothing: calls that were ever sent fail instead of being sent again, because the former process may have run
them. Frames of a link that was replaced are not looked at, so the word of a former session is not taken for that of
the present one.

**What is lost is made good.** A call that is silent, and every call when a link is attached, is asked after (`Probe`).
The callee says that it runs, sends its kept answer again, says that it never saw it, or says that the answer is gone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from enum import Enum
from typing import Any, Generic, TypeVar

import msgspec

from rolecall.transport.session.messages import (
    NOTIFICATION,
    STREAM,
    Ack,
    Asked,
    Body,
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

ACKS_AT_ONCE = 256  # acknowledgements that ride on one frame
ASKED_AT_ONCE = 1024
MAX_CALLS = 32768
MAX_SETTLED = 4096
SETTLED_ROUNDS = 3  # said again, for the frame itself may be lost
LARGE_REPLY = 256 << 10  # keeping its answer costs the callee more than a frame costs
PROBE_MAX_S = 15.0

Owner = TypeVar("Owner")


class Reason(Enum):
    """Why a call has no answer."""

    CANCELLED = "cancelled"
    EXPIRED = "expired"
    RESTARTED = "restarted"
    GONE = "gone"


class Answered(msgspec.Struct, Generic[Owner], gc=False):
    """The call has its answer; it is over."""

    owner: Owner
    ok: bool
    body: Body


class Arrived(msgspec.Struct, Generic[Owner], gc=False):
    """The next items of a stream, in order."""

    owner: Owner
    bodies: list[Body]


class Failed(msgspec.Struct, Generic[Owner], gc=False):
    """The call will have no answer; it is over."""

    owner: Owner
    reason: Reason


class Unread(msgspec.Struct, gc=False):
    """Arrived for a call that was given up: nobody will read it."""

    bodies: list[Body]


Event = Answered[Owner] | Arrived[Owner] | Failed[Owner] | Unread
Output = tuple[Sequence[Event[Owner]], Sequence[Sending]]


class Inflow:
    """The items of one stream on their way in: put in order, each counted once."""

    __slots__ = ("arrived", "consumed", "credited", "early", "final", "items", "probed_at")

    def __init__(self) -> None:
        self.arrived = 0  # items below this index have come, all of them
        self.consumed = 0
        self.credited = 0
        self.early: dict[int, Body] = {}  # items behind a gap; at most a window's worth
        self.final: Answered[Any] | None = None  # the answer, while items before it are missing
        self.items = 0  # how many come before it
        self.probed_at = float("-inf")

    def put(self, index: int, body: Body, window: int) -> list[Body]:
        """Takes an item in; returns those that are next in order."""
        if self.arrived <= index < self.consumed + 2 * window:
            self.early.setdefault(index, body)
        ready = []
        while (item := self.early.pop(self.arrived, None)) is not None:
            self.arrived += 1
            ready.append(item)
        return ready


class OpenCall(Tracked, Generic[Owner]):
    """One call that the callee may still have to be asked after.

    Attributes:
        owner: Who is told of it; the machine never looks inside.
        invocation: Kept until the callee has certainly taken the call.
        given_up: Cancelled or expired here; kept until the callee certainly knows.
    """

    __slots__ = (
        "buffers",
        "deadline",
        "given_up",
        "inflow",
        "invocation",
        "note",
        "owner",
        "probe_at",
        "probe_wait",
        "seq",
        "size",
    )

    def __init__(self, owner: Owner, invocation: Invocation, buffers: Buffers, deadline: float | None) -> None:
        self.sent = None
        self.owner = owner
        self.seq = invocation.seq
        self.note = invocation.kind == NOTIFICATION
        self.inflow = Inflow() if invocation.kind == STREAM else None
        self.invocation: Invocation | None = invocation
        self.buffers = buffers
        self.size = len(invocation.body) + (sum(b.nbytes for b in buffers) if buffers else 0)
        self.deadline = deadline
        self.given_up = False
        self.probe_at = self.probe_wait = 0.0

    def asked(self) -> Asked:
        """What a probe says of this call."""
        inflow = self.inflow
        if inflow is None:
            return Asked(self.seq, 0, 0, self.given_up)
        return Asked(self.seq, inflow.arrived, inflow.consumed, self.given_up)


class Caller(Generic[Owner]):
    """The caller's half of a session; see the module's text.

    Args:
        window: Items of a stream that may be under way.
        probe: Seconds after which a silent call is asked after; doubles up to 15 s while it runs.
        max_bytes: Bytes of unanswered requests above which `has_room` is False.

    Attributes:
        waiting: Calls without an answer that somebody waits for.
    """

    def __init__(self, *, window: int = 16, probe: float = 1.0, max_bytes: int = 256 << 20) -> None:
        self.window = window
        self.waiting = 0
        self._probe_s, self._max_bytes = probe, max_bytes
        self._open: dict[int, OpenCall[Owner]] = {}
        self._bytes = 0
        self._next = 0
        self._link = 0  # number of the newest link
        self._attached = False
        self._remote = ""
        self._acks: deque[int] = deque()
        self._answered_below = 0
        self._rounds = 0

    def __len__(self) -> int:
        """Calls that are remembered, with notifications and calls that were given up."""
        return len(self._open)

    @property
    def has_room(self) -> bool:
        """Whether one more call should be made now rather than later."""
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
        """Admits a call. When its `sent` is not None, its `invocation` is to be sent now, else it waits for a link."""
        seq = self._next
        self._next = seq + 1
        acks = self.take_acks() if self._acks and self._attached else ()
        call = OpenCall(owner, Invocation(seq, kind, method, meta, self.window, acks, body), buffers, deadline)
        self._open[seq] = call
        self._bytes += call.size
        self.waiting += not call.note
        if self._attached:
            call.sent = self._link, UNKNOWN  # from here on it may have been taken
        return call

    def withdraw(self, call: OpenCall[Owner]) -> None:
        """Takes back a call that could not be sent; nobody is told."""
        if self._open.pop(call.seq, None) is not None:
            self._release(call)

    def give_up(self, call: OpenCall[Owner], reason: Reason) -> Output[Owner]:
        """Fails a call here and tells the callee; nothing happens when it is over already."""
        if call.given_up or self._open.get(call.seq) is not call:
            return (), ()
        self._release(call)
        call.given_up = True
        call.invocation, call.buffers = None, ()
        events: list[Event[Owner]] = [Failed(call.owner, reason)]
        if call.inflow is not None and (bodies := _unread(call.inflow)):
            events.append(Unread(bodies))
        if call.sent is None:  # the callee has never heard of it
            del self._open[call.seq]
            return events, ()
        return events, ((Cancel(call.seq), (), None),) if self._attached else ()

    def consume(self, call: OpenCall[Owner]) -> Sequence[Sending]:
        """The reader took one item of a stream."""
        inflow = call.inflow
        if inflow is None:
            return ()
        inflow.consumed += 1
        if inflow.consumed - inflow.credited < max(1, self.window // 2):
            return ()
        inflow.credited = inflow.consumed
        return ((Credit(call.seq, inflow.consumed), (), None),) if self._attached else ()

    def fail_all(self) -> list[Owner]:
        """Forgets every call; returns the owners of those that were waited for."""
        owners = [call.owner for call in self._open.values() if not call.given_up and not call.note]
        self._open.clear()
        self._bytes = self.waiting = 0
        return owners

    # Links and time

    def attach(self, remote: str, now: float) -> tuple[int, Sequence[Event[Owner]], Sequence[Sending]]:
        """Goes on over a new link to the session `remote` ("" where it is not known).

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
            self._rounds = SETTLED_ROUNDS  # acknowledgements may have been lost with the former link
        asked: list[Asked] = []
        sendings: list[Sending] = []
        for call in self._open.values():
            if call.sent is not None:
                asked.append(call.asked())
            else:
                sendings += self._send(call)
            call.probe_at, call.probe_wait = now + self._probe_s, self._probe_s
        return self._link, events, [*sendings, *_probes(asked)]

    def detach(self) -> None:
        """The link is lost; calls wait for the next one."""
        self._attached = False

    def tick(self, now: float, written: int) -> Output[Owner]:
        """Fails calls whose deadline has passed, asks after those that are silent, and says what has arrived.

        Args:
            written: Bytes that the kernel has taken of what was sent on the present link.
        """
        events: list[Event[Owner]] = []
        sendings: list[Sending] = []
        asked = []
        for call in list(self._open.values()):
            if call.deadline is not None and call.deadline <= now and not call.given_up:
                failed, cancels = self.give_up(call, Reason.EXPIRED)
                events += failed
                sendings += cancels
            elif call.probe_wait == 0.0:
                call.probe_at, call.probe_wait = now + self._probe_s, self._probe_s
            elif call.probe_at <= now and self._attached and not call.queued(self._link, written):
                call.probe_at = now + call.probe_wait
                asked.append(call.asked())
        if self._attached:
            sendings += [*_probes(asked), *self._acknowledgements()]
        return events, sendings

    # What arrives

    def receive(self, link: int, message: Reply | Item | Status, buffers: Buffers, now: float) -> Output[Owner]:
        """Takes a message in that came on the link of number `link`."""
        if link != self._link or not self._attached:
            return (), ()
        if isinstance(message, Reply):
            return self._on_reply(message, buffers, now)
        if isinstance(message, Item):
            return self._on_item(message, buffers, now)
        return self._on_status(message, now)

    def _on_reply(self, reply: Reply, buffers: Buffers, now: float) -> Output[Owner]:
        call = self._open.get(reply.seq)
        if call is None:
            return (), self._acknowledge(reply.seq, 0) if reply.seq < self._next else ()
        inflow = call.inflow
        if inflow is not None and not call.given_up and inflow.arrived < reply.items:
            inflow.final = Answered(call.owner, reply.ok, (reply.body, buffers))
            inflow.items = reply.items
            return (), self._probe_gap(call, inflow, now)
        return self._over(call, Answered(call.owner, reply.ok, (reply.body, buffers)))

    def _over(self, call: OpenCall[Owner], answer: Answered[Owner]) -> Output[Owner]:
        del self._open[call.seq]
        buffers = answer.body[1]
        sendings = self._acknowledge(call.seq, sum(map(len, buffers)) if buffers else 0)
        if call.given_up:
            return ((Unread([answer.body]),) if answer.ok else ()), sendings
        self._release(call)
        return ((answer,) if not call.note else ()), sendings

    def _on_item(self, item: Item, buffers: Buffers, now: float) -> Output[Owner]:
        call = self._open.get(item.seq)
        if call is None or call.inflow is None:
            return (), ()
        body = item.body, buffers
        if call.given_up:
            return (Unread([body]),), ()
        inflow = call.inflow
        ready = inflow.put(item.index, body, self.window)
        call.probe_at, call.probe_wait = now + self._probe_s, self._probe_s
        events: Sequence[Event[Owner]] = (Arrived(call.owner, ready),) if ready else ()
        if inflow.early:
            return events, self._probe_gap(call, inflow, now)
        if inflow.final is not None and inflow.arrived >= inflow.items:
            last, sendings = self._over(call, inflow.final)
            return (*events, *last), sendings
        return events, ()

    def _on_status(self, status: Status, now: float) -> Output[Owner]:
        for seq in status.running:
            call = self._open.get(seq)
            if call is not None:
                call.invocation, call.buffers = None, ()  # taken for certain: it is never sent again
                call.probe_wait = min(call.probe_wait * 2, PROBE_MAX_S)
        events: list[Event[Owner]] = []
        sendings: list[Sending] = []
        for seq in status.unknown:
            call = self._open.get(seq)
            if call is not None and call.given_up:
                del self._open[seq]
            elif call is not None and call.invocation is not None:
                call.probe_at, call.probe_wait = now + self._probe_s, self._probe_s
                sendings += self._send(call)
        for seq in status.gone:
            events += self._lost(self._open.pop(seq, None), Reason.GONE)
        return events, sendings

    # Parts of the above

    def _send(self, call: OpenCall[Owner]) -> Sequence[Sending]:
        if call.invocation is None:
            return ()
        call.sent = self._link, UNKNOWN
        return ((call.invocation, call.buffers, call),)

    def _release(self, call: OpenCall[Owner]) -> None:
        self._bytes -= call.size
        self.waiting -= not call.note

    def _lost(self, call: OpenCall[Owner] | None, reason: Reason) -> Sequence[Event[Owner]]:
        """Ends a call that was taken out of the table without an answer."""
        if call is None or call.given_up:
            return ()
        self._release(call)
        if call.note:
            return ()
        unread = _unread(call.inflow) if call.inflow is not None else []
        failed = Failed(call.owner, reason)
        return (failed, Unread(unread)) if unread else (failed,)

    def _restarted(self) -> Sequence[Event[Owner]]:
        """The other process is a new one: what the former one had taken may have run and will not be answered."""
        self._acks.clear()
        self._answered_below = self._rounds = 0
        sent = [call for call in self._open.values() if call.sent is not None]
        events: list[Event[Owner]] = []
        for call in sent:
            del self._open[call.seq]
            events += self._lost(call, Reason.RESTARTED)
        return events

    def _probe_gap(self, call: OpenCall[Owner], inflow: Inflow, now: float) -> Sequence[Sending]:
        """Asks at once for what is missing of a stream, but not for each item that comes behind the same gap."""
        if now - inflow.probed_at <= self._probe_s / 20:
            return ()
        inflow.probed_at = now
        return ((Probe([call.asked()]), (), None),)

    # Acknowledgements

    def _acknowledge(self, seq: int, size: int) -> Sequence[Sending]:
        self._acks.append(seq)
        if seq >= self._answered_below:
            self._answered_below = seq + 1
        self._rounds = SETTLED_ROUNDS
        if size >= LARGE_REPLY or len(self._acks) >= ACKS_AT_ONCE:
            return ((Ack(self.take_acks()), (), None),)
        return ()

    def take_acks(self) -> Sequence[int]:
        """Acknowledgements for the next frame."""
        acks = self._acks
        if len(acks) <= ACKS_AT_ONCE:
            taken = list(acks)
            acks.clear()
            return taken
        return [acks.popleft() for _ in range(ACKS_AT_ONCE)]

    def _acknowledgements(self) -> list[Sending]:
        """What has arrived, and, a few times after the last answer, a summary that makes good for lost ones."""
        sendings: list[Sending] = [(Ack(self.take_acks()), (), None)] if self._acks else []
        if self._rounds:
            self._rounds -= 1
            below = self._answered_below
            waiting = [seq for seq in self._open if seq < below]
            if len(waiting) <= MAX_SETTLED:
                sendings.append((Settled(below, waiting), (), None))
        return sendings


def _unread(inflow: Inflow) -> list[Body]:
    bodies = list(inflow.early.values())
    inflow.early.clear()
    if inflow.final is not None and inflow.final.ok:
        bodies.append(inflow.final.body)
    return bodies


def _probes(asked: list[Asked]) -> list[Sending]:
    return [(Probe(asked[start : start + ASKED_AT_ONCE]), (), None) for start in range(0, len(asked), ASKED_AT_ONCE)]
