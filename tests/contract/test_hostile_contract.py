"""Engines that break what serves them, on every backend whose workers are processes: all calls are answered."""

from __future__ import annotations

import pytest

from rolecall import Role, Scheduler
from rolecall.errors import (
    EngineCallError,
    EngineCreationError,
    ShardNotFoundError,
    WorkerFailedError,
    WorkerTimeoutError,
)
from tests.support import hostile_engines
from tests.support.schedulers_under_test import BACKENDS, each

ANSWER_S = 60.0  # nobody waits so long unless a call is never answered


@pytest.fixture(scope="module", params=each([name for name, backend in BACKENDS.items() if backend.own_processes]))
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def role(shared: Scheduler) -> Role:
    role = shared.start("actor", 2, cpu=1).with_options(timeout=ANSWER_S)
    role.create_engine(hostile_engines.Hostile)
    return role


def test_an_exception_that_raises_when_it_is_told_is_told(role: Role) -> None:
    """Whatever its `__str__` raises, the call is answered, and so are all calls after it."""
    for kind in range(len(hostile_engines.KINDS)):
        for method in ("raise_odd", "raise_odd_async", "raise_plain", "raise_plain_async"):
            with pytest.raises(EngineCallError, match=method):
                role[0].call(method, kind)
            assert role[0].call("answer") == 42, method
        with pytest.raises(EngineCallError, match="raise_odd_later"):
            list(role[0].stream("raise_odd_later", kind))
        with pytest.raises(EngineCreationError, match="RaisesWhenTold"):
            role[0].with_options(engine="another").create_engine(hostile_engines.HostileConstructor, kind)
    assert role.call("answer") == [42, 42]


def test_a_long_message_is_told_without_its_middle(role: Role) -> None:
    """Its beginning and its end arrive, with how much was left out; the log is bounded, too."""
    with pytest.raises(EngineCallError, match="begins here") as raised:
        role[0].call("raise_large", 100)
    text = str(raised.value)
    assert "ends here" in text and "characters left out" in text and len(text) < 300_000
    assert role[0].call("answer") == 42


@pytest.mark.parametrize("method", ["run_another_program", "run_another_program_beside_a_child", "close_all_files"])
def test_a_process_that_is_no_worker_any_more_is_ended(role: Role, method: str) -> None:
    """Its calls fail at once, with what has happened, though its process would live on; the others are not touched."""
    pending = role[0].submit(method)
    ended = "without the connection to its guard|SIGABRT"  # an event loop that finds its own files closed aborts
    with pytest.raises(WorkerFailedError, match=ended):
        pending.result(10.0)  # after 2 s, and what asking a cluster's manager takes
    with pytest.raises(WorkerFailedError):
        role[0].call("answer")
    assert role[1].call("answer") == 42


def test_a_log_that_hangs_on_opening_keeps_no_death_from_being_told(role: Role) -> None:
    """The death is told without the log's end, and the role is ended as ever."""
    role[0].call("put_fifo_for_log")
    with pytest.raises(WorkerFailedError, match="exit code 3"):
        role[0].call("die")
    assert role[1].call("answer") == 42
    role.delete()


def test_a_constructor_or_destroy_that_does_not_return_is_named_and_ends_with_its_role(
    role: Role, caplog: pytest.LogCaptureFixture
) -> None:
    """Other engines of its worker go on, a restart makes the worker usable, and ends wait for nothing."""
    two = role.with_options(engine="two", timeout=1.5)
    with pytest.raises(WorkerTimeoutError, match=r"actor/1: no answer within 1\.5 s"):
        two.create_engine(hostile_engines.NeverMade)
    with pytest.raises(EngineCreationError, match=r"actor/1: .* its constructor has not returned"):
        two[1].create_engine(hostile_engines.Hostile)
    assert two[0].call("answer") == 42 and role.call("answer") == [42, 42]
    role[1].restart(engines=False)
    two[1].create_engine(hostile_engines.Hostile)
    assert two.call("answer") == [42, 42]
    three = role.with_options(engine="three", timeout=1.5)
    three.create_engine(hostile_engines.NeverDestroyed)
    three.destroy_engine()
    assert "actor/1: engine three: destroy() took more than 1.5 s" in caplog.text
    assert two.call("answer") == [42, 42]
    role[1].with_options(engine="four").submit_engine(hostile_engines.NeverMade, (), {})
    role.delete()


def test_a_dead_owners_arrays_are_lost_at_once(role: Role) -> None:
    """Its host answers and nothing listens there: nobody waits as for a host that does not answer."""
    made = role[0].with_options(tensors="remote").call("make")
    assert role[1].call("total", made) == 8.0
    unread = role[0].with_options(tensors="remote").call("make")
    with pytest.raises(WorkerFailedError):
        role[0].call("die")
    with pytest.raises(ShardNotFoundError, match="nothing listens there any more"):
        role[1].call("total", unread)
