"""How a role goes on when some of its workers died, on every backend whose workers are processes."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from rolecall import Role, Scheduler
from rolecall.errors import (
    EngineCreationError,
    EngineNotFoundError,
    WorkerCreationError,
    WorkerFailedError,
    WorkerNotFoundError,
)
from tests.support import calling_engines
from tests.support.backend import Backend
from tests.support.schedulers_under_test import BACKENDS, each
from tests.support.waiting import wait_for


@pytest.fixture(scope="module", params=each([name for name, backend in BACKENDS.items() if backend.own_processes]))
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def role(shared: Scheduler) -> Role:
    role = shared.start("actor", 3, cpu=1, process_group=True)
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
    lenient = role.with_options(return_errors=True, engine="second")
    for errors in (
        lenient.create_engine(calling_engines.Calling, "second"),
        lenient.set_env({"COLOUR": "blue"}),
        asyncio.run(lenient.aset_env({"COLOUR": "blue"})),
        lenient.destroy_engine(),
        asyncio.run(lenient.acreate_engine(calling_engines.Calling, "second")),
    ):
        assert (errors[0], type(errors[1]), errors[2]) == (None, WorkerFailedError, None)
    assert [state.state for state in role.inspect()] == ["running", "failed", "running"]
    assert [w.id for w in role[::2].workers] == ["actor/0", "actor/2"]


def test_the_end_of_a_dead_workers_log_is_told_once(role: Role, caplog: pytest.LogCaptureFixture) -> None:
    """Ten lines, in the controller's log; each error has the end of the log as an attribute."""
    role[1].call("say", [f"line {i}" for i in range(20)])
    pending = [role[1].submit("forever") for _ in range(3)]
    with pytest.raises(WorkerFailedError):
        role[1].call("die")
    errors = [call.exception() for call in pending]
    assert all(isinstance(e, WorkerFailedError) and "line 19" in e.log_tail and "line 19" not in str(e) for e in errors)
    wait_for(lambda: "line 19" in caplog.text, 10, "report of the death")
    assert [line for line in caplog.text.splitlines() if line.startswith("line")] == [
        f"line {i}" for i in range(10, 20)
    ]


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


def test_a_workers_log_tells_of_its_engines_and_of_failed_calls(role: Role, shared: Scheduler) -> None:
    """With the traceback, since the caller may never look at it."""
    role[0].submit("divide", 1, 0).exception()
    text = Path(shared.run_dir, "logs", "actor-0.log").read_text()
    assert "INFO rolecall: engine 'actor/0' (tests.support.calling_engines:Calling) was made in" in text
    assert "ERROR rolecall: divide() raised; its caller is told" in text
    assert "in divide" in text and "ZeroDivisionError: division by zero" in text


def test_stacks_show_where_coroutines_wait(role: Role) -> None:
    """An `async` method that waits is on no thread's stack."""
    call = role[0].submit("forever")
    role[0].call("where")
    text = role[0].stacks()
    assert "in forever" in text and "await asyncio.Event().wait()" in text
    assert "Thread" in text
    call.cancel()


# Restarts


def test_a_dead_worker_comes_back_under_its_id(role: Role) -> None:
    """It is another process in the same slot, its engines are made again, and the role is whole."""
    before = role.inspect()
    lost = role[1].submit("die")
    with pytest.raises(WorkerFailedError):
        lost.result()
    role[1].restart()
    assert role.call("where") == ["actor/0", "actor/1", "actor/2"]
    after = role.inspect()
    assert [w.incarnation for w in after] == [0, 1, 0]
    assert (after[0], after[2]) == (before[0], before[2])
    assert (after[1].pid != before[1].pid, after[1].ports) == (True, before[1].ports)
    assert (after[1].devices, after[1].guard, after[1].state) == (before[1].devices, before[1].guard, "running")
    with pytest.raises(WorkerFailedError):  # calls of the last incarnation stay what they are
        lost.result()


def test_a_living_worker_is_replaced(role: Role) -> None:
    """What runs on it fails and says why, and its engines are left out on request."""
    first, running = role.inspect()[0].pid, role[0].submit("forever")
    role[0].restart(engines=False)
    error = running.exception()
    assert isinstance(error, WorkerFailedError) and "was stopped by its restart()" in str(error)
    assert role.inspect()[0].pid != first
    with pytest.raises(EngineNotFoundError):
        role[0].call("where")
    calling_engines.create(role[:1])
    assert role.call("where") == ["actor/0", "actor/1", "actor/2"]


def test_a_restarted_worker_has_the_environment_of_the_last(role: Role) -> None:
    """What was set for the role and what was set later; and its rank."""
    role.set_env({"LATER": "1"})
    env = role[2].call("environment")
    role[2].restart()
    again = role[2].call("environment")
    assert (again["LATER"], again["RANK"], again["WORLD_SIZE"]) == ("1", env["RANK"], env["WORLD_SIZE"])
    assert (again["MASTER_ADDR"], again["MASTER_PORT"]) == (env["MASTER_ADDR"], env["MASTER_PORT"])
    role[0].restart()
    assert role[0].call("environment")["MASTER_PORT"] == env["MASTER_PORT"] == role[0].worker.worker_ports[1]


def test_a_restart_that_waits_for_its_process_group_says_so(
    role: Role, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The constructor waits, as for ranks that do not come; the log says for what, and what to do."""
    mood = tmp_path / "mood"
    role[1].with_options(engine="joins").create_engine(calling_engines.Moody, "actor/1", str(mood))
    mood.write_text("wait")
    with ThreadPoolExecutor(1) as pool:
        restart = pool.submit(role[1].restart)
        wait_for(lambda: "the restart of actor/1 waits for an engine" in caplog.text, 60, "the word of the restart")
        assert "restart the others of role actor too" in caplog.text and not restart.done()
        mood.unlink()
    restart.result()
    assert role.call("where") == ["actor/0", "actor/1", "actor/2"]


def test_forks_outlive_the_restart_of_their_target(role: Role) -> None:
    """And a fork is restarted in its target's slot, as the target is."""
    forks = role.fork("ref")
    calling_engines.create(forks)
    assert not {"RANK", "MASTER_PORT"} & forks[0].call("environment").keys()  # its target asked for them
    role[0].restart()
    assert forks.call("where") == ["ref/0", "ref/1", "ref/2"]
    forks[0].submit("die").exception()
    forks[0].restart()
    assert forks.call("where") == ["ref/0", "ref/1", "ref/2"]
    assert role.call("where") == ["actor/0", "actor/1", "actor/2"]


def test_a_role_is_deleted_while_its_fork_is_restarted(role: Role, shared: Scheduler, tmp_path: Path) -> None:
    """The deletion waits for the restart, and goes on when that has ended."""
    forks, mood = role.fork("ref"), tmp_path / "mood"
    forks[0].create_engine(calling_engines.Moody, "ref/0", str(mood))
    mood.write_text("wait")
    with ThreadPoolExecutor(2) as aside:
        restart = aside.submit(forks[0].restart)
        wait_for(lambda: mood.read_text() == "waiting", 30, "the constructor")
        deletion = aside.submit(role.delete)
        wait_for(lambda: shared.inspect().worker("actor/0").state == "ending", 30, "the deletion")
        mood.unlink()
        restart.result()
        deletion.result()
    assert shared.inspect().roles == []


def test_a_fork_needs_a_living_target(role: Role) -> None:
    """A start and a restart say whose death is in the way, and what to do; a living fork stays as it is."""
    forks = role.fork("ref")
    calling_engines.create(forks)
    role[1].submit("die").exception()
    said = r"lives in the slot of actor/1; restart it first: worker actor/1 .* died: killed by SIGKILL"
    with pytest.raises(WorkerCreationError, match=f"'judge' .*judge/1 {said}"):
        role.fork("judge")
    with pytest.raises(WorkerCreationError, match=f"ref/1 {said}"):
        forks[1].restart()
    assert forks.call("where") == ["ref/0", "ref/1", "ref/2"]
    role[1].restart()
    forks[1].restart()
    assert forks.call("where") == ["ref/0", "ref/1", "ref/2"]


def test_workers_of_a_lost_guard_come_back_or_say_what_to_do(
    make: Callable[..., Scheduler], shared: Scheduler, facts: Backend
) -> None:
    """On one machine another guard is started; on a cluster the place was lost with the guard."""
    s = make() if facts.name == "local" else shared
    role = s.start("actor", 3, cpu=1)
    calling_engines.create(role)
    forks = role.fork("ref")
    lost = role.inspect()[0]
    (pid,) = [guard.pid for guard in s.inspect().guards if guard.id == lost.guard]
    os.kill(pid, signal.SIGKILL)
    role[0].submit("forever").exception()
    if facts.name != "local":
        with pytest.raises(WorkerCreationError, match="delete the role and start it again"):
            role[0].restart()
        return
    with pytest.raises(WorkerCreationError, match=r"lives in the slot of actor/0; restart it first: .* with its guard"):
        forks[0].restart()
    for worker in [*role, *forks]:
        worker.restart()
    assert role.call("where") == ["actor/0", "actor/1", "actor/2"]
    back = role.inspect()[0]
    assert (back.guard != lost.guard, back.ports, back.devices) == (True, lost.ports, lost.devices)


def test_a_loop_restarts_what_it_loses(role: Role) -> None:
    """The loop of the README: what was lost runs again, also where it was lost."""
    results: dict[int, int] = {}
    for done in role.as_completed("count_or_die", [(i, role[1].id) for i in range(20)], in_flight=9):
        try:
            results[done.index] = done.result()
        except WorkerFailedError:
            if not done.worker.alive:
                done.worker.restart()
            done.resubmit()
    assert sorted(results) == list(range(20))
    assert role.inspect()[1].incarnation > 0
    assert len(role.alive) == 3


def test_a_worker_is_in_service_again_when_its_engines_are_there(role: Role, tmp_path: Path) -> None:
    """Until then nobody calls it. A constructor that fails leaves it dead, and the next restart makes all engines."""
    mood, moody = tmp_path / "mood", role.with_options(engine="moody")
    for worker in moody:
        worker.create_engine(calling_engines.Moody, worker.id, str(mood))
    mood.write_text("fail")
    with pytest.raises(EngineCreationError, match="not today"):
        role[1].restart()
    assert not role[1].alive
    with pytest.raises(WorkerFailedError, match="its restart failed"):
        role[1].call("where")
    mood.write_text("wait")
    with ThreadPoolExecutor(1) as aside:
        restart = aside.submit(role[1].restart)
        wait_for(lambda: mood.read_text() == "waiting", 30, "the constructor")
        assert not role[1].alive
        for refused in (role[1].restart, lambda: role[1].call("where")):
            with pytest.raises(WorkerFailedError, match="its restart\\(\\), which has not ended"):
                refused()
        asked = [done.result() for done in moody.as_completed("where", [()] * 40, in_flight=6)]
        assert set(asked) == {"actor/0", "actor/2"}
        mood.unlink()
        restart.result()
    assert role.call("where") == moody.call("where") == ["actor/0", "actor/1", "actor/2"]


def test_an_engine_that_was_given_up_is_remembered(
    role: Role, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is made all the same. No callback complains of the call that was cancelled."""
    mood, moody = tmp_path / "mood", role[:1].with_options(engine="moody")
    mood.write_text("wait")
    given_up = moody[0].submit_engine(calling_engines.Moody, ("actor/0", str(mood)), {})
    wait_for(lambda: mood.read_text() == "waiting", 30, "the constructor")
    given_up.cancel()
    mood.unlink()
    role[0].restart()
    assert moody.call("where") == ["actor/0"]
    assert "exception calling callback" not in caplog.text


def test_a_restart_of_what_is_not_there_is_refused(role: Role, shared: Scheduler) -> None:
    """The error lists the workers that there are."""
    with pytest.raises(WorkerNotFoundError, match="no worker 'actor/7'"):
        shared.restart_worker("actor/7")
