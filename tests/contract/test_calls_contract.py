"""What a caller may do with calls under way, and with a part of a role. The same tests run against every scheduler."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Iterator

import pytest

from rolecall import Role, Scheduler
from rolecall.errors import (
    CallCancelledError,
    EncodeError,
    EngineCallError,
    EngineCreationError,
    EngineNotFoundError,
    WorkerConfigurationError,
    WorkerTimeoutError,
)
from tests.support import calling_engines, typed_calls


@pytest.fixture
def role(actor: Role, request: pytest.FixtureRequest) -> Role:
    """With an engine of the test's own."""
    role = actor.with_options(engine=request.function.__name__)
    calling_engines.create(role)
    return role


# Futures


def test_a_pending_call_is_a_future_of_the_standard_library(role: Role) -> None:
    """`wait` and `as_completed` of concurrent.futures take calls, and give them as they end."""
    slow, quick = role[0].submit("sleep", 0.5), role[1].submit("sleep", 0.0)
    assert isinstance(slow, concurrent.futures.Future)
    first = concurrent.futures.wait([slow, quick], return_when=concurrent.futures.FIRST_COMPLETED)
    assert (first.done, slow.running()) == ({quick}, True)
    assert [call.result() for call in concurrent.futures.as_completed([slow, quick], timeout=30)] == [0.0, 0.5]
    assert slow.done() and not slow.running() and not slow.cancelled()


def test_a_callback_runs_once_whether_it_comes_before_the_answer_or_after(role: Role) -> None:
    """`add_done_callback` gets the call, whose result is there."""
    told: list[object] = []
    both = threading.Barrier(2, timeout=30)

    def note(call: concurrent.futures.Future[object]) -> None:
        told.append(call.result())
        both.wait()

    call = role[0].submit("sleep", 0.05)
    call.add_done_callback(note)
    both.wait()
    call.add_done_callback(lambda call: told.append(call.result()))
    assert told == [0.05, 0.05]


def test_a_call_is_awaited_as_itself_and_as_a_wrapped_future(role: Role) -> None:
    """Results and errors come through asyncio too, and cancelling the wrapping future cancels the call."""

    async def main() -> None:
        call = role[0].submit("sleep", 0.01)
        assert await asyncio.wrap_future(call) == await call == 0.01
        with pytest.raises(EngineCallError, match="ZeroDivisionError"):
            await asyncio.wrap_future(role[0].submit("divide", 1, 0))
        endless = role[0].submit("forever")
        wrapped = asyncio.wrap_future(endless)
        wrapped.cancel()
        await asyncio.sleep(0)
        assert endless.cancelled()

    asyncio.run(main())


def test_a_call_says_what_it_ended_with(role: Role) -> None:
    """`exception` gives the error that `result` raises, and None after a success."""
    failed, done = role[0].submit("divide", 1, 0), role[0].submit("divide", 4, 2)
    assert isinstance(failed.exception(), EngineCallError)
    assert done.exception() is None
    refused = role[0].submit("sleep", 0.0)
    assert refused.exception() is None
    with pytest.raises(EncodeError):
        role[0].submit("sleep", threading.Lock())


def test_a_cancelled_call_ends_everybody_who_waits(role: Role) -> None:
    """The errors are those of concurrent.futures, and cancelling what is done does nothing."""
    call = role[0].submit("forever")
    assert call.cancel()
    assert concurrent.futures.wait([call], timeout=30).done == {call}
    assert call.cancelled() and call.done()
    for ask in (call.result, call.exception):
        with pytest.raises(concurrent.futures.CancelledError) as caught:
            ask()
        assert isinstance(caught.value, CallCancelledError)
    done = role[0].submit("divide", 4, 2)
    assert done.result() == 2
    assert not done.cancel() and not done.cancelled()


def test_whoever_waits_a_while_leaves_the_call_alone(role: Role) -> None:
    """`result(timeout)` limits the waiting; the option `timeout` limits the call, waited for or not."""
    call = role[0].submit("sleep", 0.4)
    with pytest.raises(TimeoutError, match=r"sleep\(\) on actor/0 has not ended within 0.01 s; it goes on"):
        call.result(timeout=0.01)
    assert call.result(timeout=30) == 0.4
    limited = role[1].with_options(timeout=0.1).submit("forever")
    assert concurrent.futures.wait([limited], timeout=30).done == {limited}
    assert isinstance(limited.exception(), WorkerTimeoutError)


def test_a_method_may_return_a_future(role: Role) -> None:
    """It is waited for on the worker, and its error is the call's."""
    assert role[0].call("from_a_pool", 4) == role[0].call("from_a_pool_async", 4) == 2
    with pytest.raises(EngineCallError, match="TypeError"):
        role[0].call("from_a_pool", "4")


def test_a_method_is_called_by_its_function(actor: Role) -> None:
    """As by its name; a view of one worker's engine has the methods of its class."""
    role = actor.with_options(engine="typed")
    typed_calls.of_a_role(role)
    typed_calls.of_one_worker(role[0])
    with pytest.raises(AttributeError, match="'Trainer' has no attribute 'trian'"):
        role[0].engine(typed_calls.Trainer).trian(3)  # type: ignore[attr-defined]
    with pytest.raises(WorkerConfigurationError, match=r"no method of an engine.*as Trainer.train"):
        role.call(role.call, 3)


# Parts of a role


def test_a_slice_of_a_role_is_a_role(role: Role) -> None:
    """Slices can be called, sliced again, and given other options."""
    part = role[1:]
    assert [w.id for w in part] == ["actor/1", "actor/2"]
    assert part.call("where") == ["actor/1", "actor/2"]
    assert part[1:].with_options(timeout=60).call("where") == ["actor/2"]
    assert [w.id for w in role[::-1]] == ["actor/2", "actor/1", "actor/0"]
    assert role[::-1].map("divide", [(6, 1), (6, 2), (6, 3)]) == [6, 3, 2]
    assert [w.id for w in part.workers] == ["actor/1", "actor/2"]
    assert [w.id for w in part.inspect()] == ["actor/1", "actor/2"]
    assert role[3:].call("where") == []


def test_only_a_whole_role_is_forked_or_deleted(role: Role) -> None:
    """Forks are of all workers, one for one."""
    with pytest.raises(WorkerConfigurationError, match="only a whole role is forked"):
        role[:1].fork("ref")
    with pytest.raises(WorkerConfigurationError, match="only a whole role is deleted"):
        role[:1].with_options(timeout=1).delete()


def test_map_takes_keywords_for_all(role: Role) -> None:
    """Tuples are for each worker, keywords for all of them."""
    assert role.map("divide", [(1,), (2,), (4,)], by=2) == [0.5, 1, 2]


def test_errors_may_be_results(role: Role) -> None:
    """With `return_errors` a failed call's place holds its error, an error that was returned stays a result."""
    lenient = role.with_options(return_errors=True)
    good, bad, worse = lenient.map("divide", [(1, 1), (1, 0), (1, 0)])
    assert good == 1 and isinstance(bad, EngineCallError) and isinstance(worse, EngineCallError)
    assert isinstance(lenient[0].call("divide", 1, 0), EngineCallError)
    assert [type(e) for e in role.call("an_error")] == [ValueError] * len(role)
    with pytest.raises(WorkerConfigurationError, match=r"unknown option of a call.*return_errors"):
        role.with_options(returns_errors=True)  # type: ignore[call-arg]


def test_a_role_is_not_its_engine(role: Role) -> None:
    """Who calls a method of the engine on the role is told how."""
    for wrong in (role, role[0]):
        with pytest.raises(
            AttributeError, match=r"no 'divide'; a method of its engine is called by .call\('divide', ...\)"
        ):
            wrong.divide(1, 2)  # type: ignore[attr-defined,union-attr]
    with pytest.raises(EngineCallError, match=r"where\(\) returned str, which cannot be streamed; use .call"):
        list(role[0].stream("where"))


def test_an_engine_is_replaced_on_purpose(role: Role) -> None:
    """Its name is taken until it is destroyed."""
    with pytest.raises(EngineCreationError, match=r"exists; destroy_engine\(\) ends it"):
        role.create_engine(calling_engines.Calling, "again")
    role.destroy_engine()
    role[:2].create_engine(calling_engines.Calling, "again")
    assert role[:2].call("where") == ["again", "again"]
    with pytest.raises(EngineNotFoundError):
        role[2].call("where")


def test_what_destroy_raises_is_logged(role: Role, caplog: pytest.LogCaptureFixture) -> None:
    """The engine is gone nevertheless."""
    role[0].call("refuse_to_end")
    role.destroy_engine()
    assert "actor/0: engine test_what_destroy_raises_is_logged: destroy() raised ValueError: not yet" in caplog.text
    with pytest.raises(EngineNotFoundError):
        role[0].call("where")


def test_a_misspelt_option_of_a_start_is_told_with_the_nearest(kept: Scheduler) -> None:
    """Those of the start itself are among the candidates."""
    with pytest.raises(WorkerConfigurationError, match=r"'replica'; did you mean 'replicas'\? there are replicas, "):
        kept.start("b", replica=2)  # type: ignore[call-arg]


# Many calls


def test_as_completed_keeps_a_number_of_calls_under_way(role: Role) -> None:
    """Each argument is used once, its index goes with its result, and as many calls run as were asked for."""
    seen = {done.index: done.result() for done in role.as_completed("count", [(i,) for i in range(30)], in_flight=6)}
    assert {i: value for i, (value, _) in seen.items()} == {i: i for i in range(30)}
    assert max(running for _, running in seen.values()) == 2  # on each of three workers


def test_as_completed_gives_what_ends_first(role: Role) -> None:
    """A slow call keeps none waiting, and failed ones are given too."""
    calls = role.as_completed("divide_slowly", [(1, 0.5), (0, 0.0), (2, 0.0)], in_flight=3)
    ended = list(calls)
    assert ended[-1].arguments == (1, 0.5) and ended[-1].result() == 1
    failed = next(done for done in ended if done.index == 1)
    with pytest.raises(EngineCallError, match="ZeroDivisionError"):
        failed.result()


def test_as_completed_takes_arguments_one_by_one_and_leaving_it_cancels(role: Role) -> None:
    """An endless source of arguments is no problem."""
    taken: list[int] = []

    def endless() -> Iterator[tuple[int]]:
        while True:
            taken.append(len(taken))
            yield (taken[-1],)

    calls = iter(role.as_completed("count", endless(), in_flight=4))
    assert next(calls).index in range(4)
    calls.close()  # type: ignore[attr-defined]
    assert len(taken) <= 6
    assert role.call("where") == ["actor/0", "actor/1", "actor/2"]


def test_as_completed_for_a_loop_that_is_asynchronous(role: Role) -> None:
    """The same with `async for`, with keywords for all calls."""

    async def main() -> list[float]:
        calls = role.as_completed("divide", [(i,) for i in range(10)], in_flight=4, by=2)
        return sorted([done.result() async for done in calls])

    assert asyncio.run(main()) == [i / 2 for i in range(10)]


def test_as_completed_refuses_what_can_never_work(role: Role) -> None:
    """No call under way, nobody to call, or arguments that would be taken apart; nor a time limit that is none."""
    with pytest.raises(WorkerConfigurationError, match="bad in_flight: 0"):
        role.as_completed("count", [], in_flight=0)
    with pytest.raises(WorkerConfigurationError, match="a slice without workers"):
        role[3:].as_completed("count", [])
    for wrong in (1, "ab"):
        with pytest.raises(WorkerConfigurationError, match=r"no tuple: .*use as_completed"):
            list(role.as_completed("count", [wrong]))  # type: ignore[list-item]
    for limit in ("x", -1):
        with pytest.raises(WorkerConfigurationError, match="bad timeout"):
            role.with_options(timeout=limit)  # type: ignore[arg-type]
