"""Everything that can happen to a session, as rules that hypothesis strings together in any order."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from rolecall.transport.session.callee import Callee
from rolecall.transport.session.caller import Caller
from rolecall.transport.session.messages import CALL, NOTIFICATION, STREAM

from .world import ALL_WRITTEN, Asking, Running, World

ANY = st.integers(min_value=0, max_value=1 << 16)  # taken modulo the number of things there are
FEW = st.integers(min_value=1, max_value=4)


class Conversation(RuleBasedStateMachine):
    """The rules; what must hold is checked by the `World`. `caller` and `callee` are the machines under test."""

    caller: type[Caller[Asking]] = Caller
    callee: type[Callee[Running]] = Callee

    @initialize(kept=st.sampled_from([None, None, 1, 2]))
    def begin(self, kept: int | None) -> None:
        self.world = World(self.caller, self.callee, kept)

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.world.settle()

    @rule(kind=st.sampled_from([CALL, CALL, STREAM, NOTIFICATION]), seconds=st.sampled_from([None, None, 0.5, 3.0]))
    def ask(self, kind: int, seconds: float | None) -> None:
        deadline = None if seconds is None or kind == NOTIFICATION else self.world.now + seconds
        self.world.ask(kind, deadline)

    @precondition(lambda self: self.world.calls)
    @rule(n=ANY)
    def cancel(self, n: int) -> None:
        self.world.cancel(self.world.calls[n % len(self.world.calls)])

    @precondition(lambda self: self.world.calls)
    @rule(n=ANY)
    def read(self, n: int) -> None:
        self.world.read(self.world.calls[n % len(self.world.calls)])

    @precondition(lambda self: self.world.running)
    @rule(n=ANY, count=FEW)
    def emit(self, n: int, count: int) -> None:
        for _ in range(count):
            self.world.emit(self.world.running[n % len(self.world.running)])

    @precondition(lambda self: self.world.running)
    @rule(n=ANY, ok=st.booleans(), lent=st.booleans())
    def answer(self, n: int, ok: bool, lent: bool) -> None:
        running = self.world.running[n % len(self.world.running)]
        if not running.answered:
            self.world.answer(running, ok, lent)

    @rule(seconds=st.sampled_from([0.01, 0.3, 1.0, 20.0]), written=st.sampled_from([0, ALL_WRITTEN]))
    def time_passes(self, seconds: float, written: int) -> None:
        self.world.tick(seconds, written)

    @rule()
    def connect_both(self) -> None:
        cable = self.world.connect()
        self.world.attach_callee(cable)
        self.world.attach_caller(cable)

    @rule()
    def dial(self) -> None:
        self.world.connect()

    @precondition(lambda self: self.world.cables)
    @rule(n=ANY)
    def the_callee_attaches(self, n: int) -> None:
        self.world.attach_callee(self.world.cables[n % len(self.world.cables)])

    @precondition(lambda self: self.world.cables)
    @rule()
    def the_caller_attaches(self) -> None:
        self.world.attach_caller(self.world.cables[-1])

    @rule()
    def the_caller_loses_the_link(self) -> None:
        self.world.detach_caller()

    @rule()
    def the_callee_loses_the_link(self) -> None:
        self.world.detach_callee()

    @precondition(lambda self: self.world.cables)
    @rule(n=ANY, count=FEW, back=st.sampled_from([1, 1, 1, 2, 3]), keep=st.sampled_from([False, False, False, True]))
    def messages_arrive(self, n: int, count: int, back: int, keep: bool) -> None:
        """On any cable, the oldest too, and some of them twice."""
        cable = self.world.cables[-min(back, len(self.world.cables))]
        for _ in range(count):
            if n % 2:
                self.world.deliver_up(cable, keep=keep)
            else:
                self.world.deliver_down(cable, keep=keep)

    @precondition(lambda self: self.world.cables)
    @rule(back=FEW, up=st.booleans(), n=ANY)
    def a_message_is_lost(self, back: int, up: bool, n: int) -> None:
        cable = self.world.cables[-min(back, len(self.world.cables))]
        way = cable.up if up else cable.down
        if way:
            del way[n % len(way)]

    @precondition(lambda self: self.world.cables)
    @rule(back=FEW, up=st.booleans(), n=ANY)
    def a_message_overtakes(self, back: int, up: bool, n: int) -> None:
        cable = self.world.cables[-min(back, len(self.world.cables))]
        way = cable.up if up else cable.down
        if way:
            way.insert(0, way.pop(n % len(way)))

    @rule()
    def the_callee_restarts(self) -> None:
        self.world.start_callee()

    @rule()
    def the_caller_restarts(self) -> None:
        self.world.start_caller()
