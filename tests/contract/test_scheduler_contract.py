"""What every scheduler promises. The same tests run against each of them."""

from __future__ import annotations

import asyncio
import io
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from rolecall import Job, Scheduler, SchedulingSpec, SchedulingStrategy
from rolecall.errors import (
    EncodeError,
    EngineCallError,
    EngineCreationError,
    EngineImportError,
    EngineNotFoundError,
    RolecallError,
    RPCConnectionError,
    WorkerConfigurationError,
    WorkerCreationError,
    WorkerNotFoundError,
    WorkerTimeoutError,
)
from tests.support import live, sample_engines
from tests.support.backend import DEVICES, Backend
from tests.support.schedulers_under_test import BACKENDS, each

Echo = sample_engines.Echo
ENGINES = sample_engines.__name__


@pytest.fixture(scope="module", params=each(list(BACKENDS)))
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def s(shared: Scheduler) -> Scheduler:
    return shared


# Beginning


class InterruptedWhileWriting(io.StringIO):
    def write(self, text: str) -> int:
        raise KeyboardInterrupt


def test_ctrl_c_as_a_run_says_where_it_listens_leaves_nothing(
    make: Callable[..., Scheduler], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A KeyboardInterrupt inside the constructor leaves no process behind."""
    before = {process.pid for process in psutil.Process().children(recursive=True)}
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", InterruptedWhileWriting())
        with pytest.raises(KeyboardInterrupt):
            make(quiet=False)
    assert {process.pid for process in psutil.Process().children(recursive=True)} <= before


# Jobs


def test_worker_ids_are_role_and_index_in_order(s: Scheduler) -> None:
    """Ids are `role/index` in order, and no port is given out twice."""
    assert s.create_workers(Job("actor", 3)) == ["actor/0", "actor/1", "actor/2"]
    workers = s.get_workers("actor")
    assert [w.id for w in workers] == ["actor/0", "actor/1", "actor/2"]
    assert all(len(w.worker_ports) == 2 for w in workers)
    ports = [p for w in workers for p in w.worker_ports]
    assert len(set(ports)) == len(ports)


def test_a_job_without_replicas_is_refused() -> None:
    """A job has at least one replica."""
    with pytest.raises(WorkerConfigurationError, match="use 1 or more"):
        Job("actor", 0)


def test_a_job_with_the_wrong_number_of_specs_is_refused() -> None:
    """A job has one spec for all replicas or one for each of them."""
    with pytest.raises(WorkerConfigurationError, match="one for each of the 3"):
        Job("actor", 3, [SchedulingSpec(), SchedulingSpec()])


def test_an_unknown_strategy_is_refused() -> None:
    """The error lists the strategies that exist."""
    with pytest.raises(WorkerConfigurationError, match="separation, colocation"):
        SchedulingStrategy("beside")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["", "a/b", "../x", "a b", "-x", "a" * 64, "a\0b", "ä"])
def test_bad_role_names_are_refused(name: str) -> None:
    """A role's name is short, ASCII, and cannot leave a folder or be taken for an option."""
    with pytest.raises(WorkerConfigurationError, match="bad role name"):
        Job(name)


def test_a_role_that_exists_is_refused_and_stays(s: Scheduler) -> None:
    """Creating a role of a name that is taken fails and leaves the existing role alone."""
    s.create_workers(Job("actor"))
    with pytest.raises(WorkerCreationError, match="there is a role of that name"):
        s.create_workers(Job("actor"))
    assert len(s.get_workers("actor")) == 1


def test_an_unknown_role_is_named_with_those_that_run(s: Scheduler) -> None:
    """The error for an unknown role lists the running ones, the error for an unknown worker names it."""
    s.create_workers(Job("actor"))
    with pytest.raises(WorkerNotFoundError, match=r"no role 'actr' \(running: actor\)"):
        s.get_workers("actr")
    with pytest.raises(WorkerNotFoundError, match="no worker 'actor/7'"):
        s.call_engine("actor/7", "echo")


def test_more_devices_than_free_are_refused_and_may_be_had_when_they_are_given_back(
    s: Scheduler, facts: Backend
) -> None:
    """Devices are exclusive to a role until it is deleted."""
    s.create_workers(Job("actor", DEVICES // 2, [SchedulingSpec(gpu=2)]))
    error, seen = facts.full
    with pytest.raises(error, match=seen):
        s.create_workers(Job("rollout", 1, [SchedulingSpec(gpu=1)]))
    s.delete_workers("actor")
    s.create_workers(Job("rollout", DEVICES // 4, [SchedulingSpec(gpu=4)]))


def test_a_plan_starts_nothing_and_takes_nothing(s: Scheduler) -> None:
    """`plan` shows the slots of a job, is repeatable, and reserves nothing."""
    job = Job("actor", DEVICES // 2, [SchedulingSpec(gpu=2)])
    plan = s.plan(job)
    assert [(slot.worker_id, slot.gpu) for slot in plan.slots] == [(f"actor/{i}", 2) for i in range(DEVICES // 2)]
    assert s.plan(job) == plan
    with pytest.raises(WorkerNotFoundError):
        s.get_workers("actor")


# Engines and calls


def test_an_engine_is_created_and_called(s: Scheduler) -> None:
    """An engine is called on all workers, on one worker, and with different arguments for each."""
    role = s.start("actor", replicas=2)
    role.create_engine(Echo, "hi")
    assert role.call("greet") == ["hi", "hi"]
    assert role[1].call("add", 2, b=3) == 5
    assert role.map("add", [(1, 2), (3, 4)]) == [3, 7]


def test_the_reference_interface_calls_engines_from_threads_and_tasks(s: Scheduler) -> None:
    """`create_engine`, `call_engine` and `async_call_engine`, with the default engine and with a named one."""
    (worker,) = s.create_workers(Job("actor"))

    async def use() -> list[Any]:
        await s.create_engine(worker, Echo, None, "default")
        await s.create_engine(worker, f"{ENGINES}.Echo", "second", greeting="second")
        first = await s.async_call_engine(worker, "greet")
        second = await s.async_call_engine(worker, "greet", "second")
        return [first, second, await s.async_call_engine(worker, "add", None, 1, b=2)]

    assert asyncio.run(use()) == ["default", "second", 3]
    assert s.call_engine(worker, "add", "second", 4, b=5) == 9


def test_what_a_role_does_it_does_from_a_task_as_well(s: Scheduler) -> None:
    """Each method of a role has an awaitable form with the same results and errors."""
    role = s.start("actor", replicas=2)

    async def use() -> list[list[Any]]:
        await role.acreate_engine(Echo, "hi")
        await role.aset_env({"COLOUR": "blue"})
        return [await role.acall("greet"), await role.amap("add", [(1, 2), (3, 4)])]

    assert asyncio.run(use()) == [["hi", "hi"], [3, 7]]
    with pytest.raises(WorkerConfigurationError, match="one tuple for each of the 2"):
        role.map("add", [(1, 2)])


def test_options_do_not_share_a_namespace_with_arguments(s: Scheduler) -> None:
    """A method's own argument `timeout` reaches the method, beside the option of that name."""
    role = s.start("actor")
    role.create_engine(Echo)
    assert role[0].with_options(timeout=30).call("add", 1, timeout=5) == 6


def test_several_named_engines_live_in_one_worker(s: Scheduler) -> None:
    """Engines of different names in one worker are addressed by name."""
    role = s.start("actor")
    role.create_engine(Echo, "default")
    role.with_options(engine="second").create_engine(Echo, "second")
    assert role.call("greet") == ["default"]
    assert role.with_options(engine="second").call("greet") == ["second"]
    assert s.call_engine("actor/0", "greet", "second") == "second"


def test_a_second_engine_of_the_same_name_is_refused(s: Scheduler) -> None:
    """Creating an engine under a taken name fails and leaves the first engine alone."""
    role = s.start("actor")
    role.create_engine(Echo)
    with pytest.raises(EngineCreationError, match="engine of that name"):
        role.create_engine(Echo)
    assert role[0].call("greet") == "hello"


def test_an_exception_comes_back_with_type_message_and_traceback(s: Scheduler) -> None:
    """An engine's exception arrives as EngineCallError with worker, method, type, message and traceback."""
    role = s.start("actor")
    role.create_engine(Echo)
    with pytest.raises(EngineCallError) as caught:
        role[0].call("fail", "broken on purpose")
    error = caught.value
    assert (error.worker_id, error.method) == ("actor/0", "fail")
    assert error.remote_type == "builtins.ValueError"
    assert error.remote_message == "broken on purpose"
    assert "in fail" in error.traceback


def test_an_attribute_error_in_user_code_is_not_a_missing_method(s: Scheduler) -> None:
    """An AttributeError raised by a method, a missing method and a missing engine are three different errors."""
    role = s.start("actor")
    role.create_engine(Echo)
    with pytest.raises(EngineCallError) as caught:
        role[0].call("missing_attribute")
    assert not isinstance(caught.value, EngineNotFoundError)
    assert caught.value.remote_type == "builtins.AttributeError"
    with pytest.raises(EngineNotFoundError, match="no method 'nope'"):
        role[0].call("nope")
    with pytest.raises(EngineNotFoundError, match="no engine 'other'"):
        role[0].with_options(engine="other").call("echo", 1)


@pytest.mark.parametrize("path", ["os.system", "subprocess.Popen", "os:system", "builtins.eval", "pathlib.Path"])
def test_the_standard_library_is_refused_as_an_engine(s: Scheduler, path: str) -> None:
    """A class of the standard library cannot be made an engine by its path."""
    role = s.start("actor")
    with pytest.raises(EngineImportError):
        role.create_engine(path)


def test_a_class_that_is_not_there_is_an_import_error(s: Scheduler) -> None:
    """A path that cannot be imported fails with EngineImportError, and the worker stays usable."""
    role = s.start("actor")
    for path in (
        "no_such_package.Engine",
        f"{ENGINES}.NoSuchClass",
        f"{ENGINES}:Path",
    ):
        with pytest.raises(EngineImportError):
            role.create_engine(path)
    role.create_engine(f"{ENGINES}.Echo")
    assert role[0].call("greet") == "hello"


def test_a_constructor_that_raises_leaves_the_name_free(s: Scheduler) -> None:
    """After a failed constructor an engine of the same name can be created."""
    role = s.start("actor")
    with pytest.raises(EngineCreationError, match="no such model"):
        role.create_engine(sample_engines.BadConstructor)
    role.create_engine(Echo)
    assert role[0].call("greet") == "hello"


def test_what_does_not_travel_is_named_by_its_place_and_the_worker_lives_on(s: Scheduler) -> None:
    """Arguments and results that are not serializable fail with their place inside the value."""
    role = s.start("actor")
    role.create_engine(Echo)
    with pytest.raises(EncodeError, match="function"):
        role[0].call("echo", {"fn": lambda: 1})
    with pytest.raises((EncodeError, EngineCallError), match=r"fn.*\[0\].*lock"):
        role[0].call("unencodable")
    assert role[0].call("greet") == "hello"


def test_plain_methods_run_one_at_a_time_in_order_on_one_thread(s: Scheduler) -> None:
    """However many calls are under way at once, each finds itself alone, on the thread of the first."""
    role = s.start("actor")
    role.create_engine(sample_engines.Turns)
    pending = [role[0].submit("enter", number) for number in range(100)]
    seen = [call.result() for call in pending]
    assert {most for most, _ in seen} == {1}
    assert len({thread for _, thread in seen}) == 1
    assert role[0].call("entered") == list(range(100))


def test_async_methods_run_beside_each_other_and_beside_a_plain_one(s: Scheduler) -> None:
    """A hundred of them meet while a plain method waits for what only an async one will do."""
    role = s.start("actor")
    role.create_engine(sample_engines.Turns)
    waiting = role[0].submit("wait_until_released")

    async def meet() -> list[Any]:
        return list(await asyncio.gather(*(role[0].acall("meet", 100) for _ in range(100))))

    assert asyncio.run(meet()) == [100] * 100
    assert asyncio.run(role[0].acall("release")) == 1
    assert waiting.result() == "released"


def test_generators_stream(s: Scheduler) -> None:
    """Items of generators and async generators arrive one by one and in order."""
    role = s.start("actor")
    role.create_engine(Echo)
    assert list(role[0].stream("numbers", 100)) == list(range(100))
    assert list(role[0].stream("tokens", 50)) == [f"t{i}" for i in range(50)]

    async def collect() -> list[str]:
        return [item async for item in role[0].astream("tokens", 3)]

    assert asyncio.run(collect()) == ["t0", "t1", "t2"]


def test_a_deadline_is_kept_and_says_what_to_do(s: Scheduler) -> None:
    """A call that exceeds its timeout fails with the command that shows the worker's stack."""
    role = s.start("actor")
    role.create_engine(Echo)
    with pytest.raises(WorkerTimeoutError, match="rolecall stack actor/0"):
        role[0].with_options(timeout=0.2).call("sleep", 1.0)
    assert role[0].call("greet") == "hello"


def test_cancelling_reaches_an_async_method(s: Scheduler, tmp_path: Path) -> None:
    """Cancelling the awaiting task raises CancelledError inside the engine's async method."""
    role = s.start("actor")
    role.create_engine(Echo)
    seen = tmp_path / "cancelled"

    async def cancel() -> None:
        task = asyncio.ensure_future(role[0].acall("until_cancelled", str(seen)))
        while not Path(f"{seen}.started").exists():
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancel())
    deadline = time.monotonic() + 5
    while not seen.exists() and time.monotonic() < deadline:
        role[0].call("greet")
    assert seen.exists()


# Tensors


@pytest.mark.slow("workers that import torch")
def test_tensors_come_whole_by_default_and_as_handles_on_request(s: Scheduler) -> None:
    """Handles can be concatenated, split, passed to other workers and fetched."""
    import torch

    import rolecall

    role = s.start("rollout", replicas=2)
    role.create_engine(sample_engines.Tensors)
    whole = role[0].call("make", 3)
    assert torch.equal(whole["x"], torch.ones(3, 4))
    remote = role.with_options(tensors="remote")
    parts = remote.map("make", [(3, 1.0), (5, 2.0)])
    batch = rolecall.RTensor.cat([p["x"] for p in parts])
    assert isinstance(batch, rolecall.RTensor)
    assert tuple(batch.shape) == (8, 4)
    assert role[0].call("total", batch) == 3 * 4 + 5 * 4 * 2
    first, second = batch.split(4)
    assert role.map("total", [(first,), (second,)]) == [12 + 8, 32]
    assert torch.equal(rolecall.localize(batch[2:4]), torch.tensor([[1.0] * 4, [2.0] * 4]))


@pytest.mark.slow("workers that import torch")
def test_a_constructor_is_given_tensors_for_handles(s: Scheduler) -> None:
    """A handle among a constructor's arguments arrives as its tensor."""
    owner = s.start("owner").with_options(tensors="remote")
    owner.create_engine(sample_engines.Tensors)
    reader = s.start("reader")
    reader.create_engine(sample_engines.Reader, owner[0].call("make", 5)["x"])
    assert reader.call("made_with") == [20.0]


# Forks


def test_a_fork_lives_in_the_slot_of_its_target(s: Scheduler) -> None:
    """A fork has an engine of its own beside its target, and a name that must be free."""
    actors = s.start("actor", replicas=2, gpu=2, env_vars={"COLOUR": "red"})
    actors.create_engine(Echo)
    refs = actors.fork("ref")
    refs.create_engine(Echo, "ref")
    assert [w.id for w in refs.workers] == ["ref/0", "ref/1"]
    assert refs.call("greet") == ["ref", "ref"]
    with pytest.raises(WorkerNotFoundError, match=r"no role 'nobody' \(running: actor, ref\)"):
        s.fork_workers("x", "nobody")
    with pytest.raises(WorkerCreationError, match="there is a role of that name"):
        s.fork_workers("ref", "actor")


def test_deleting_a_fork_leaves_its_target_and_deleting_a_target_takes_its_forks(s: Scheduler) -> None:
    """Deletion goes from a target to its forks, never the other way."""
    actors = s.start("actor")
    actors.create_engine(Echo)
    actors.fork("ref")
    s.delete_workers("ref")
    assert actors.call("greet") == ["hello"]
    actors.fork("ref").fork("refref")
    s.delete_workers("actor")
    for role in ("actor", "ref", "refref"):
        with pytest.raises(WorkerNotFoundError):
            s.get_workers(role)


def test_colocation_in_a_job_is_a_fork(s: Scheduler) -> None:
    """A job with the strategy `colocation` becomes a fork of its target."""
    s.start("actor", replicas=2)
    assert s.create_workers(Job("ref", 2, scheduling_strategy=SchedulingStrategy("colocation", "actor"))) == [
        "ref/0",
        "ref/1",
    ]


def test_a_colocated_job_keeps_the_environment_that_its_specs_name(s: Scheduler, facts: Backend) -> None:
    """Variables of a fork's own spec override those of its target."""
    s.start("actor", replicas=2, env_vars={"A": "target's", "B": "target's"})
    tasks = [SchedulingSpec(env_vars={"B": f"own {i}"}, port_count=3) for i in range(2)]
    role = s.start("ref", replicas=2, target="actor", tasks=tasks)
    assert all(len(worker.worker_ports) == 3 for worker in role.workers)
    if facts.own_processes:  # else there is one environment for all of them
        role.create_engine(Echo)
        seen = role.call("environment", "A", "B")
        assert seen == [{"A": "target's", "B": "own 0"}, {"A": "target's", "B": "own 1"}]


def test_a_call_to_a_role_that_is_deleted_meanwhile_says_so(s: Scheduler) -> None:
    """A pending call of a deleted role fails and names the deletion as the cause."""
    role = s.start("actor")
    role.create_engine(Echo)
    pending = role[0].submit("later", 1, 60.0)
    role.delete()
    with pytest.raises(RPCConnectionError, match="connection to actor/0 lost: role 'actor' was deleted"):
        pending.result()


def test_colocation_without_a_fork_uses_the_targets_own_workers(s: Scheduler) -> None:
    """Two roles share the same worker processes, and deleting the second leaves the first."""
    actors = s.start("actor", replicas=2)
    actors.create_engine(Echo, "actor")
    critics = s.start("critic", replicas=2, target="actor", fork=False)
    critics.create_engine(Echo, "critic")
    assert critics.call("greet") == ["critic", "critic"]
    assert actors.call("greet") == ["actor", "actor"]
    assert critics.call("pid") == actors.call("pid")
    s.delete_workers("critic")
    assert actors.call("greet") == ["actor", "actor"]


def test_colocation_with_other_replicas_or_without_a_target_is_refused(s: Scheduler) -> None:
    """A colocated role has as many replicas as its target, which must exist."""
    s.start("actor", replicas=2)
    with pytest.raises(WorkerConfigurationError, match="as many as its target"):
        s.start("ref", replicas=3, target="actor")
    with pytest.raises(WorkerNotFoundError):
        s.start("ref", replicas=2, target="nobody")
    with pytest.raises(WorkerConfigurationError, match="without a target"):
        SchedulingStrategy("colocation")


# Ends


def test_roles_are_deleted_one_or_all_and_may_be_made_again(s: Scheduler) -> None:
    """Roles are deleted by name or all at once, and a deleted name is free again."""
    s.start("a")
    s.start("b")
    s.delete_workers("a")
    s.start("a").create_engine(Echo)
    s.delete_workers(reverse_order=True)
    with pytest.raises(WorkerNotFoundError):
        s.delete_workers("a")


def test_closing_twice_is_fine_and_ends_everything(make: Callable[..., Scheduler]) -> None:
    """The second time does nothing; a role of a scheduler that is closed cannot be called."""
    scheduler = make()
    role = scheduler.start("a")
    role.create_engine(Echo)
    scheduler.close()
    scheduler.close()
    with pytest.raises(RolecallError):
        role.call("greet")


def test_destroy_is_called_on_every_engine_before_its_worker_ends(s: Scheduler, tmp_path: Path) -> None:
    """By the time a deletion returns, each engine has done what it does last."""
    role = s.start("actor", replicas=2)
    names = tmp_path / "destroyed"
    for name in ("first", "second"):
        role.with_options(engine=name).create_engine(sample_engines.Last, str(names), name)
    s.delete_workers("actor")
    assert sorted(names.read_text().split()) == ["first", "first", "second", "second"]


def test_a_run_says_in_one_line_where_it_listens_and_what_protects_it(
    make: Callable[..., Scheduler], capsys: pytest.CaptureFixture[str]
) -> None:
    """A scheduler prints its address, its protection and its folder in one line, and nothing if `quiet`."""
    scheduler = make()
    (line,) = capsys.readouterr().err.splitlines()
    assert "listens on unix:" in line and "auth on, TLS off" in line and scheduler.run_dir in line
    make(trial="silent", quiet=True)
    assert capsys.readouterr().err == ""


def test_the_token_is_in_no_file_that_others_can_read(s: Scheduler) -> None:
    """No file of the run directory holds the run's token."""
    s.start("actor")
    token = live.token(s).encode()
    for root, _, files in os.walk(s.run_dir):
        for name in files:
            assert token not in (Path(root) / name).read_bytes()


def test_a_run_can_be_inspected(s: Scheduler) -> None:
    """The view of a run names every worker with its process, its devices and since when it is there."""
    began = time.time()
    actors = s.start("actor", replicas=2, gpu=1)
    actors.create_engine(Echo)
    refs = actors.fork("ref")
    seen = actors.inspect()
    assert [worker.id for worker in seen] == ["actor/0", "actor/1"]
    assert [worker.pid for worker in seen] == actors.call("pid")
    assert all(worker.state == "running" and began - 1 <= worker.since <= time.time() for worker in seen)
    assert all(len(worker.devices) == 1 for worker in seen)
    assert [worker.target for worker in refs.inspect()] == ["actor/0", "actor/1"]
    run = s.inspect()
    assert {worker.id for worker in run.workers()} == {"actor/0", "actor/1", "ref/0", "ref/1"}
    assert {worker.guard for worker in run.workers()} == {guard.id for guard in run.guards if guard.pid}
    with pytest.raises(WorkerNotFoundError):
        run.worker("actor/7")
