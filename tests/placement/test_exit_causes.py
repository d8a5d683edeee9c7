"""Why a guard has ended: who is asked, how often, and that whoever waits is answered in time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from rolecall.placement.allocations import ASK_S, RUNS, ExitCause, ExitCauses
from rolecall.placement.base import ExpectedGuard
from rolecall.scheduler.guards import GuardProxy
from rolecall.transport.loop import IOThread

LONG_S = 30.0
SHORT_S = 0.3


class Manager:
    """Says what it is told to say, one answer after the other; the last one again and again."""

    def __init__(self, *answers: ExitCause) -> None:
        self.answers = list(answers)
        self.asked: list[str] = []
        self.silent = threading.Event()
        self.silent.set()

    def __call__(self, guard: ExpectedGuard) -> ExitCause:
        self.asked.append(guard.guard_id)
        self.silent.wait(LONG_S)
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


class Waiter:
    """Somebody who wants to know."""

    def __init__(self) -> None:
        self.reasons: list[str] = []
        self.threads: list[str] = []
        self.told = threading.Event()

    def __call__(self, words: str) -> None:
        self.reasons.append(words)
        self.threads.append(threading.current_thread().name)
        self.told.set()


@pytest.fixture
def io() -> Iterator[IOThread]:
    made = IOThread("test-io")
    yield made
    made.close()


@pytest.fixture
def causes_of(io: IOThread) -> Iterator[Callable[[Manager], ExitCauses]]:
    made: list[ExitCauses] = []

    def make(manager: Manager) -> ExitCauses:
        made.append(ExitCauses(manager, io))
        return made[-1]

    yield make
    for causes in made:
        causes.close()


def guard(io: IOThread, name: str = "g0") -> GuardProxy:
    return GuardProxy(name, io, lambda *_: None)


def test_words_come_once_and_on_the_io_thread(io: IOThread, causes_of: Callable[[Manager], ExitCauses]) -> None:
    """A cause is reported once, on the I/O thread, and not again when the limit passes."""
    waiter = Waiter()
    causes_of(Manager(ExitCause(True, "cancelled"))).explain(guard(io), waiter, patient=True, limit_s=SHORT_S)
    assert waiter.told.wait(LONG_S)
    time.sleep(2 * SHORT_S)  # the limit passes too
    assert (waiter.reasons, waiter.threads) == (["cancelled"], ["test-io"])


def test_who_is_patient_waits_until_the_manager_has_noticed(
    io: IOThread, causes_of: Callable[[Manager], ExitCauses]
) -> None:
    """A patient caller is answered with the first final cause."""
    waiter = Waiter()
    manager = Manager(RUNS, RUNS, ExitCause(True, "COMPLETING", final=False), ExitCause(True, "TIMEOUT"))
    causes_of(manager).explain(guard(io), waiter, patient=True, limit_s=LONG_S)
    assert waiter.told.wait(LONG_S)
    assert waiter.reasons == ["TIMEOUT"]
    assert len(manager.asked) == 4


def test_who_is_not_patient_is_answered_when_the_manager_says_that_it_runs(
    io: IOThread, causes_of: Callable[[Manager], ExitCauses]
) -> None:
    """An impatient caller gets no cause from a manager that has not noticed yet."""
    waiter = Waiter()
    manager = Manager(RUNS)
    causes_of(manager).explain(guard(io), waiter, patient=False, limit_s=LONG_S)
    assert waiter.told.wait(LONG_S)
    assert (waiter.reasons, manager.asked) == ([""], ["g0"])


@pytest.mark.parametrize(
    ("says", "words"), [(RUNS, ""), (ExitCause(True, "COMPLETING", final=False), "COMPLETING")], ids=["runs", "ending"]
)
def test_at_the_limit_whoever_waits_gets_what_is_known(
    io: IOThread, causes_of: Callable[[Manager], ExitCauses], says: ExitCause, words: str
) -> None:
    """When the time limit passes, the last cause that was seen is the answer."""
    waiter = Waiter()
    causes_of(Manager(says)).explain(guard(io), waiter, patient=True, limit_s=SHORT_S)
    assert waiter.told.wait(LONG_S)
    assert waiter.reasons == [words]


def test_a_silent_manager_keeps_nobody_waiting(io: IOThread, causes_of: Callable[[Manager], ExitCauses]) -> None:
    """However many wait: the limit is everybody's own."""
    manager = Manager(ExitCause(True, "too late"))
    manager.silent.clear()
    causes = causes_of(manager)
    waiters = [Waiter() for _ in range(50)]
    for n, waiter in enumerate(waiters):
        causes.explain(guard(io, f"g{n}"), waiter, patient=True, limit_s=SHORT_S)
    assert all(waiter.told.wait(LONG_S) for waiter in waiters)
    assert [waiter.reasons for waiter in waiters] == [[""]] * 50
    assert manager.asked == ["g0"]
    manager.silent.set()


def test_all_guards_of_a_lost_job_are_told_together(io: IOThread, causes_of: Callable[[Manager], ExitCauses]) -> None:
    """A manager that takes its time to notice is asked for all of them, not for some after the others."""
    noticed = threading.Event()

    def ask(guard: ExpectedGuard) -> ExitCause:
        return ExitCause(True, "NODE_FAIL") if noticed.is_set() else RUNS

    causes = ExitCauses(ask, io)
    waiters = [Waiter() for _ in range(200)]
    for n, waiter in enumerate(waiters):
        causes.explain(guard(io, f"g{n}"), waiter, patient=True, limit_s=LONG_S)
    noticed.set()
    assert all(waiter.told.wait(LONG_S) for waiter in waiters)
    assert {word for waiter in waiters for word in waiter.reasons} == {"NODE_FAIL"}
    causes.close()


class Broken(Manager):
    """Its second answer is an error of its tools."""

    def __call__(self, guard: ExpectedGuard) -> ExitCause:
        self.asked.append(guard.guard_id)
        if len(self.asked) == 2:
            raise OSError("no such cluster")
        return self.answers.pop(0)


def test_an_error_of_the_managers_tools_is_no_answer(io: IOThread, causes_of: Callable[[Manager], ExitCauses]) -> None:
    """It is asked again."""
    waiter = Waiter()
    manager = Broken(ExitCause(True, "COMPLETING", final=False), ExitCause(True, "TIMEOUT"))
    causes_of(manager).explain(guard(io), waiter, patient=False, limit_s=LONG_S)
    assert waiter.told.wait(LONG_S)
    assert waiter.reasons == ["TIMEOUT"]


def test_and_takes_nothing_back(io: IOThread, causes_of: Callable[[Manager], ExitCauses]) -> None:
    """A later, emptier answer of the manager does not replace an earlier cause."""
    waiter = Waiter()
    manager = Broken(ExitCause(True, "COMPLETING", final=False), ExitCause(True, "", final=False), RUNS)
    causes_of(manager).explain(guard(io), waiter, patient=True, limit_s=3 * ASK_S)
    assert waiter.told.wait(LONG_S)
    assert waiter.reasons == ["COMPLETING"]


def test_closing_answers_who_waits_and_who_comes_later(
    io: IOThread, causes_of: Callable[[Manager], ExitCauses]
) -> None:
    """After closing, each caller is answered with no cause at once."""
    early, late = Waiter(), Waiter()
    causes = causes_of(Manager(RUNS))
    causes.explain(guard(io), early, patient=True, limit_s=LONG_S)
    causes.close()
    causes.explain(guard(io), late, patient=True, limit_s=LONG_S)
    assert early.told.wait(LONG_S)
    assert late.told.wait(LONG_S)
    assert (early.reasons, late.reasons) == ([""], [""])
