"""A caller, a callee and a network between them, all of it values: every message lies in a list until a rule moves it.

The world checks what the two machines promise whenever something happens, and `settle` checks that everything ends once
the network behaves.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from rolecall.transport.session import callee as callees
from rolecall.transport.session import caller as callers
from rolecall.transport.session.callee import Accepted, AcceptedCall, Callee
from rolecall.transport.session.caller import Caller, OpenCall, Reason
from rolecall.transport.session.messages import NOTIFICATION, STREAM, Buffers, Item, Message, Reply, Sending, Status

ALL_WRITTEN = 1 << 63
PROBE_S = 1.0
ROUNDS = 40  # of a network that behaves, after which everything must have ended


@dataclass(eq=False)
class Asking:
    """One call as its caller sees it; `token` is found in everything that belongs to it."""

    token: str
    kind: int
    deadline: float | None
    open: OpenCall[Asking] | None = None
    items: list[bytes] = field(default_factory=list)
    unread: int = 0
    taken: int = 0
    ends: list[str] = field(default_factory=list)
    cancelled: bool = False


@dataclass(eq=False)
class Running:
    """One call as its engine sees it."""

    token: str
    call: AcceptedCall[Running]
    engine: Callee[Running]
    cancelled: bool = False
    answered: bool = False


@dataclass(eq=False)
class Cable:
    """One connection between the processes that lived when it was made. Numbers are None until an end is attached."""

    caller: Caller[Asking]
    callee: Callee[Running]
    sessions: tuple[str, str]
    up: list[tuple[Message, Buffers]] = field(default_factory=list)
    down: list[tuple[Message, Buffers]] = field(default_factory=list)
    up_number: int | None = None  # at the callee
    down_number: int | None = None  # at the caller


class World:
    """Both ends, their cables and the time.

    Args:
        caller, callee: The machines; a test of the checks plants faults in them.
        kept: Answers that the callee keeps, where few are to be kept.
    """

    def __init__(
        self,
        caller: type[Caller[Asking]] = Caller,
        callee: type[Callee[Running]] = Callee,
        kept: int | None = None,
    ) -> None:
        self._caller_type, self._callee_type, self._kept = caller, callee, kept
        self.now = 0.0
        self.cables: list[Cable] = []
        self.executions: Counter[str] = Counter()
        self.restarts = 0
        self._sessions = 0
        self._tokens = 0
        self.here: Cable | None = None  # the cable that the caller is attached to
        self.there: Cable | None = None  # and the callee
        self.start_caller()
        self.start_callee()

    # Processes

    def start_caller(self) -> None:
        """A new process with a new session; what the former one asked is nobody's any more."""
        self.caller = self._caller_type(window=2, probe=PROBE_S)
        self.caller_session = self._new_session("caller")
        self.calls: list[Asking] = []
        self.here = None

    def start_callee(self) -> None:
        """A new process that remembers nothing; what the former one ran is lost."""
        self.callee = self._callee_type(max_answers=self._kept) if self._kept else self._callee_type()
        self.callee_session = self._new_session("callee")
        self.running: list[Running] = []
        self.there = None
        self.restarts += 1

    def _new_session(self, of: str) -> str:
        self._sessions += 1
        return f"{of}-{self._sessions}"

    # Links

    def connect(self) -> Cable:
        """Lays a cable between the present processes; neither end uses it yet."""
        cable = Cable(self.caller, self.callee, (self.caller_session, self.callee_session))
        self.cables.append(cable)
        return cable

    def attach_caller(self, cable: Cable) -> None:
        if cable.caller is not self.caller or cable.down_number is not None:
            return
        self.here = cable
        cable.down_number, events, sendings = self.caller.attach(cable.sessions[1], self.now)
        self._caller_did(events, sendings)

    def attach_callee(self, cable: Cable) -> None:
        if cable.callee is not self.callee or cable.up_number is not None:
            return
        self.there = cable
        cable.up_number, events = self.callee.attach(cable.sessions[0])
        self._callee_did(events, ())
        self._end_zero_copy()

    def detach_caller(self) -> None:
        self.here = None
        self.caller.detach()

    def detach_callee(self) -> None:
        self.there = None
        self._callee_did(self.callee.detach(), ())
        self._end_zero_copy()

    def deliver_up(self, cable: Cable, *, keep: bool = False) -> bool:
        """Hands the next message to the callee; `keep` leaves a duplicate behind."""
        if not cable.up or cable.up_number is None:
            return False
        message, buffers = cable.up[0] if keep else cable.up.pop(0)
        if cable.callee is self.callee:
            assert not isinstance(message, Reply | Item | Status)
            events, sendings = self.callee.receive(cable.up_number, message, buffers, ALL_WRITTEN)
            self._callee_did(events, sendings)
        return True

    def deliver_down(self, cable: Cable, *, keep: bool = False) -> bool:
        """Hands the next message to the caller."""
        if not cable.down or cable.down_number is None:
            return False
        message, buffers = cable.down[0] if keep else cable.down.pop(0)
        if cable.caller is self.caller:
            assert isinstance(message, Reply | Item | Status)
            self._caller_did(*self.caller.receive(cable.down_number, message, buffers, self.now))
        return True

    # The caller's program

    def ask(self, kind: int, deadline: float | None) -> None:
        self._tokens += 1
        asking = Asking(f"{self.caller_session}/{self._tokens}", kind, deadline)
        self.calls.append(asking)
        call = self.caller.invoke(asking, kind, asking.token, {}, asking.token.encode(), (), deadline)
        asking.open = call
        if call.sent is not None and call.invocation is not None:
            self._caller_did((), [(call.invocation, (), call)])

    def cancel(self, asking: Asking) -> None:
        if asking.kind != NOTIFICATION and asking.open is not None:
            asking.cancelled = True
            self._caller_did(*self.caller.abandon(asking.open, Reason.CANCELLED))

    def read(self, asking: Asking) -> bool:
        """Takes one item that has arrived."""
        if asking.unread == 0 or asking.open is None:
            return False
        asking.unread -= 1
        asking.taken += 1
        self._caller_did((), self.caller.consume(asking.open, asking.taken))
        return True

    def tick(self, seconds: float, written: int = ALL_WRITTEN) -> None:
        self.now += seconds
        self._caller_did(*self.caller.tick(self.now, written))

    def _caller_did(self, events: Sequence[callers.Event[Asking]], sendings: Sequence[Sending]) -> None:
        for message, buffers, _ in sendings:
            assert self.here is not None, "a message without a link"
            self.here.up.append((message, buffers))
        for event in events:
            if isinstance(event, callers.Arrived):
                self._item_arrived(event.owner, event.body[0])
            elif isinstance(event, callers.Answered):
                self._answered(event)
            elif isinstance(event, callers.Failed):
                self._failed(event.owner, event.reason)

    def _item_arrived(self, asking: Asking, body: bytes) -> None:
        assert not asking.ends, "an item after the end"
        assert body == f"{asking.token}#{len(asking.items)}".encode(), "not the next item of this stream"
        asking.items.append(body)
        asking.unread += 1

    def _answered(self, event: callers.Answered[Asking]) -> None:
        asking = event.owner
        assert asking.kind != NOTIFICATION
        body, _, count = event.body[0].decode().partition("!")
        assert body == asking.token, "another call's answer"
        assert int(count) == len(asking.items), "an answer before the last item"
        self._ends(asking, "answered")

    def _failed(self, asking: Asking, reason: Reason) -> None:
        honest = {
            Reason.CANCELLED: asking.cancelled,
            Reason.EXPIRED: asking.deadline is not None and asking.deadline <= self.now,
            Reason.RESTARTED: self.restarts > 1,
            Reason.GONE: self._kept is not None,
        }
        assert honest[reason], f"it failed with {reason}, which did not happen"
        self._ends(asking, reason.value)

    def _ends(self, asking: Asking, how: str) -> None:
        asking.ends.append(how)
        assert len(asking.ends) == 1, f"a call ended more than once: {asking.ends}"

    # The callee's program

    def emit(self, running: Running) -> bool:
        call = running.call
        if call.stream is None or not call.has_room or running.cancelled or running.answered:
            return False
        self._callee_did((), self.callee.emit(call, f"{running.token}#{call.emitted}".encode(), ()))
        return True

    def answer(self, running: Running, ok: bool = True, zero_copy: bool = False) -> None:
        """Answers; a `zero_copy` answer names the link that it may be sent on in its buffer."""
        zero_copy = zero_copy and self.there is not None and running.engine is self.callee
        buffers = (memoryview(b"zero_copy on %d" % self._up_number()),) if zero_copy else ()
        body = f"{running.token}!{running.call.emitted}".encode()
        running.answered = True
        self._callee_did(*running.engine.answer(running.call, ok, body, buffers, zero_copy=zero_copy))

    def _end_zero_copy(self) -> None:
        for running in self.running:
            if running.call.zero_copy_link and not self.callee.sending_zero_copy(running.call):
                self._callee_did((), self.callee.replace(running.call, (memoryview(b"a copy"),)))

    def _up_number(self) -> int:
        assert self.there is not None and self.there.up_number is not None
        return self.there.up_number

    def _callee_did(self, events: Sequence[callees.Event[Running]], sendings: Sequence[Sending]) -> None:
        for message, buffers, _ in sendings:
            assert self.there is not None, "a message without a link"
            for buffer in buffers:
                zero_copy = bytes(buffer).startswith(b"zero_copy")
                assert not zero_copy or bytes(buffer) == b"zero_copy on %d" % self._up_number(), (
                    "memory on another link"
                )
            self.there.down.append((message, buffers))
        for event in events:
            if isinstance(event, Accepted):
                self._accept(event)
            else:
                event.owner.cancelled = event.owner.call.cancelled

    def _accept(self, event: Accepted[Running]) -> None:
        token = event.invocation.method
        self.executions[token] += 1
        assert self.executions[token] == 1, f"{token} was run twice"
        assert self.there is not None and token.startswith(self.there.sessions[0] + "/"), "another session's call"
        running = Running(token, event.call, self.callee)
        event.call.owner = running
        self.running.append(running)
        if event.invocation.kind == NOTIFICATION:
            self.answer(running)

    # The end

    def settle(self) -> None:
        """From here on the network behaves, engines answer and readers read: everything must end and be forgotten."""
        for asking in self.calls:
            if asking.kind == STREAM and asking.ends:
                asking.unread = 0  # nobody reads on after the end
        self.detach_caller()
        self.detach_callee()
        cable = self.connect()
        self.attach_callee(cable)
        self.attach_caller(cable)
        for _ in range(ROUNDS):
            self._one_round(cable)
        assert [a for a in self.calls if a.kind != NOTIFICATION and len(a.ends) != 1] == [], "a call did not end"
        assert len(self.caller) == 0, "the caller remembers calls that are over"
        assert len(self.callee) == 0, "the callee keeps answers that have arrived"
        assert self.caller.waiting == 0
        assert self.caller.has_room
        missing = {a.token for a in self.calls if "answered" in a.ends} - {t for t, n in self.executions.items() if n}
        assert missing == set(), "an answer of a call that was not run"

    def _one_round(self, cable: Cable) -> None:
        moved = True
        while moved:
            moved = False
            while self.deliver_up(cable) or self.deliver_down(cable):
                moved = True
            for running in self.running:
                if running.engine is self.callee and not running.answered:
                    moved = True
                    if not (running.call.stream and running.call.emitted < 5 and self.emit(running)) and (
                        running.call.has_room or running.cancelled
                    ):
                        self.answer(running)
            read = [self.read(asking) for asking in self.calls]
            moved = moved or any(read)
            moved = moved and (bool(cable.up) or bool(cable.down) or self._engines_may_go_on())
        self.tick(PROBE_S)

    def _engines_may_go_on(self) -> bool:
        return any(not r.answered and (r.call.has_room or r.cancelled) for r in self.running)
