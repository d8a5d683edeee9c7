"""What this side has asked and has no answer to, and the answers it has yet to acknowledge. Any thread."""

from __future__ import annotations

import threading
from asyncio.events import _get_running_loop
from collections import deque
from collections.abc import Sequence

from rolecall.transport.call import Call, fresh
from rolecall.transport.session.messages import Settled
from rolecall.transport.waiting import Waitable

ACKS_AT_ONCE = 256  # acknowledgements that ride on one frame
MAX_CALLS = 32768
MAX_SETTLED = 4096
SETTLED_ROUNDS = 3  # said again, for the frame itself may be lost


class Pending(Waitable):
    """The caller's table. Whoever takes a call out of it, and nobody else, completes that call.

    Attributes:
        calls: Somebody waits for these, by sequence.
        notes: Notifications whose arrival is not certain yet.
        given_up: Cancelled or expired here; kept until the callee certainly knows.
        failure: What every later call raises, once the peer has ended.
    """

    def __init__(self, max_bytes: int) -> None:
        super().__init__()
        self.calls: dict[int, Call] = {}
        self.notes: dict[int, Call] = {}
        self.given_up: dict[int, Call] = {}
        self.failure: BaseException | None = None
        self._lock = threading.Lock()
        self._max_bytes = max_bytes
        self._bytes = 0
        self._next = 0
        self._acks: deque[int] = deque()
        self._answered_below = 0
        self._rounds = 0

    def admit(self, call: Call, *, note: bool) -> int:
        """Enters a call and returns its sequence; raises what the peer ended with."""
        with self._lock:
            if self.failure is not None:
                raise fresh(self.failure)
            call.seq = self._next
            self._next += 1
            (self.notes if note else self.calls)[call.seq] = call
            self._bytes += call.size
            return call.seq

    def claim(self, seq: int) -> Call | None:
        """Takes a call out; None when another was first. One that was given up is done already."""
        with self._lock:
            call = self.calls.pop(seq, None) or self.notes.pop(seq, None)
            if call is None:
                return self.given_up.pop(seq, None)
            self._bytes -= call.size
        if self._waiters and self.has_room():
            self.wake()
        return call

    def give_up(self, call: Call) -> bool:
        """Moves a call to those given up; False when it is answered already."""
        with self._lock:
            if self.calls.pop(call.seq, None) is None:
                return False
            self._bytes -= call.size
            self.given_up[call.seq] = call
        self.wake()
        return True

    def take_all(self, failure: BaseException | None = None) -> list[Call]:
        """Empties the table and returns who waits; with `failure` nothing is admitted any more."""
        with self._lock:
            self.failure = self.failure or failure
            taken = [*self.calls.values(), *self.notes.values()]
            self.calls.clear()
            self.notes.clear()
            self.given_up.clear()
            self._bytes = 0
        self.wake()
        return taken

    def all(self) -> list[Call]:
        """Everything that the other side may be asked after."""
        with self._lock:
            return [*self.calls.values(), *self.notes.values(), *self.given_up.values()]

    def has_room(self) -> bool:
        """Whether a thread may add a call without waiting."""
        return self.failure is not None or (self._bytes <= self._max_bytes and len(self.calls) < MAX_CALLS)

    def wait_for_room(self, deadline: float | None) -> None:
        """Blocks a thread that outruns the other side; code on an event loop is not made to wait."""
        if not self.has_room() and _get_running_loop() is None:
            self.wait(self.has_room, deadline)

    # Acknowledgements

    def answered(self, seq: int) -> int:
        """Notes that a reply is to be acknowledged; returns how many are."""
        self._acks.append(seq)
        self._answered_below = max(self._answered_below, seq + 1)
        self._rounds = SETTLED_ROUNDS
        return len(self._acks)

    def take_acks(self) -> Sequence[int]:
        """Acknowledgements for the next frame."""
        waiting = self._acks
        if not waiting:
            return ()
        acks: list[int] = []
        while waiting and len(acks) < ACKS_AT_ONCE:
            try:
                acks.append(waiting.popleft())
            except IndexError:  # another thread took the last one
                break
        return acks

    def settled(self) -> Settled | None:
        """A summary that makes good for lost acknowledgements, a few times after the last reply."""
        if self._rounds == 0:
            return None
        self._rounds -= 1
        with self._lock:
            below = self._answered_below
            waiting = [seq for table in (self.calls, self.notes, self.given_up) for seq in table if seq < below]
        return Settled(below, waiting) if len(waiting) <= MAX_SETTLED else None
