"""Asks a cluster's manager why a guard ended or a worker was killed. Beside the I/O thread, since answers take time."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from rolecall.placement.base import ExpectedGuard
from rolecall.transport.loop import IOThread

log = logging.getLogger("rolecall")
LOOK_S = 0.25


class ExitCause(NamedTuple):
    """What a cluster's manager says became of a guard.

    Attributes:
        ended: False while the manager says that it runs.
        reason: Why, as far as it says.
        final: It will not say more.
    """

    ended: bool
    reason: str = ""
    final: bool = True


RUNS = ExitCause(ended=False)


@dataclass(eq=False)
class _Question:
    """Somebody who waits for a reason. All but `reason` is of the I/O thread."""

    guard: ExpectedGuard
    then: Callable[[str], None]
    patient: bool
    reason: str = ""
    answered: bool = False

    def answer(self) -> None:
        if not self.answered:
            self.answered = True
            self.then(self.reason)


class ExitCauses:
    """Why guards have ended, in the words of the manager that may have ended them.

    One thread asks for all, one after the other: they have one manager, which is asked no more often for more of them.

    Args:
        ask: What the manager says of a guard.
        io: Answers are delivered there.
    """

    def __init__(self, ask: Callable[[ExpectedGuard], ExitCause], io: IOThread) -> None:
        self._ask_manager, self._io = ask, io
        self._open: list[_Question] = []
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._work, name="rolecall-exit-causes", daemon=True)
        self._thread.start()

    def explain(self, guard: ExpectedGuard, then: Callable[[str], None], *, patient: bool, limit_s: float) -> None:
        """Has `then` called, once, on the I/O thread, with what became of a guard or of what it owned.

        Args:
            patient: The guard has ended for sure: give the manager time to notice.
            limit_s: After so many seconds `then` gets what is known by then, whatever the manager does.
        """
        question = _Question(guard, then, patient)
        with self._changed:
            if not self._closing:
                self._open.append(question)
                self._changed.notify_all()
                self._io.call_soon(self._io.loop.call_later, limit_s, question.answer)
                return
        self._io.call_soon(question.answer)

    def close(self) -> None:
        """Answers what is still asked, with what is known. May be called twice."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
            left = list(self._open)
        for question in left:
            self._io.call_soon(question.answer)
        self._thread.join()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._open or self._closing)
                if self._closing:
                    return
                asked = list(self._open)
            done = {question for question in asked if self._settled(question)}
            with self._changed:
                self._open = [question for question in self._open if question not in done]
                if self._open and not self._closing:
                    self._changed.wait(LOOK_S)

    def _settled(self, question: _Question) -> bool:
        """Asks once more for one who waits; True when that was the last time."""
        if question.answered or self._closing:
            return True
        cause = self._look(question.guard)
        question.reason = cause.reason or question.reason
        if cause.final and (cause.ended or not question.patient):
            self._io.call_soon(question.answer)
            return True
        return False

    def _look(self, guard: ExpectedGuard) -> ExitCause:
        try:
            return self._ask_manager(guard)
        except Exception as e:  # whatever the manager's tools do, the caller must learn of the loss
            log.info("guard %s: its cluster did not say what became of it: %s", guard.guard_id, e)
            return ExitCause(ended=True, final=False)  # it may say so yet
