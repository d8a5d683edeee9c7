"""How a role goes on when some of its workers died, on every backend whose workers are processes."""

from __future__ import annotations

import pytest

from rolecall import Role, Scheduler
from rolecall.errors import WorkerFailedError
from tests.support import calling_engines
from tests.support.schedulers_under_test import BACKENDS, each


@pytest.fixture(scope="module", params=each([name for name, backend in BACKENDS.items() if backend.own_processes]))
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def role(shared: Scheduler) -> Role:
    role = shared.start("actor", 3, cpu=0.1)
    calling_engines.create(role)
    return role


def test_a_role_goes_on_with_its_living_workers(role: Role) -> None:
    """`alive` is the role without its dead; a call with `return_errors` asks them all."""
    with pytest.raises(WorkerFailedError):
        role[1].call("die")
    assert (role[0].alive, role[1].alive) == (True, False)
    assert role.alive.call("where") == ["actor/0", "actor/2"]
    with pytest.raises(WorkerFailedError, match="actor/1"):
        role.call("where")
    first, dead, last = role.with_options(return_errors=True).call("where")
    assert (first, last) == ("actor/0", "actor/2")
    assert isinstance(dead, WorkerFailedError)
    assert [state.state for state in role.inspect()] == ["running", "failed", "running"]
    assert [w.id for w in role[::2].workers] == ["actor/0", "actor/2"]


def test_as_completed_survives_a_death(role: Role) -> None:
    """Calls of a dead worker are given as failed ones; resubmitted they run on the others."""
    results: dict[int, int] = {}
    lost: set[str] = set()
    for done in role.as_completed("count_or_die", [(i, role[1].id) for i in range(20)], in_flight=6):
        try:
            results[done.index] = done.result()
        except WorkerFailedError:
            lost.add(done.worker.id)
            done.resubmit()
    assert (sorted(results), lost) == (list(range(20)), {"actor/1"})


def test_as_completed_ends_when_nobody_is_left(role: Role) -> None:
    """Each call ends the worker that it goes to; then the loop ends, in the words of a death."""
    failed = 0
    with pytest.raises(WorkerFailedError):
        for done in role.as_completed("die", [()] * 9, in_flight=1):
            assert isinstance(done.call.exception(), WorkerFailedError)
            failed += 1
    assert failed == 3
