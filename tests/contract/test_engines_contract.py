"""What every scheduler promises of engines and calls. The same tests run against each of them, on the same workers."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from rolecall import Role, Scheduler
from rolecall.errors import (
    EncodeError,
    EngineCallError,
    EngineCreationError,
    EngineImportError,
    EngineNotFoundError,
    ShardNotFoundError,
    WorkerConfigurationError,
    WorkerTimeoutError,
)
from tests.support import sample_engines

Echo = sample_engines.Echo
ENGINES = sample_engines.__name__


@pytest.fixture
def role(actor: Role, request: pytest.FixtureRequest) -> Role:
    """Two workers, with an engine of the test's own when it has made it."""
    return actor[:2].with_options(engine=request.function.__name__)


def test_an_engine_is_created_and_called(role: Role) -> None:
    """An engine is called on all workers, on one worker, and with different arguments for each."""
    role.create_engine(Echo, "hi")
    assert role.call("greet") == ["hi", "hi"]
    assert role[1].call("add", 2, b=3) == 5
    assert role.map("add", [(1, 2), (3, 4)]) == [3, 7]


def test_the_reference_interface_calls_engines_from_threads_and_tasks(actor: Role, kept: Scheduler) -> None:
    """`create_engine`, `call_engine` and `async_call_engine`, with the default engine and with a named one."""
    s, worker = kept, actor[0].id

    async def use() -> list[Any]:
        await s.create_engine(worker, Echo, None, "default")
        await s.create_engine(worker, f"{ENGINES}.Echo", "second", greeting="second")
        first = await s.async_call_engine(worker, "greet")
        second = await s.async_call_engine(worker, "greet", "second")
        return [first, second, await s.async_call_engine(worker, "add", None, 1, b=2)]

    assert asyncio.run(use()) == ["default", "second", 3]
    assert s.call_engine(worker, "add", "second", 4, b=5) == 9


def test_what_a_role_does_it_does_from_a_task_as_well(role: Role) -> None:
    """Each method of a role has an awaitable form with the same results and errors."""

    async def use() -> list[list[Any]]:
        await role.acreate_engine(Echo, "hi")
        await role.aset_env({"COLOUR": "blue"})
        return [await role.acall("greet"), await role.amap("add", [(1, 2), (3, 4)])]

    assert asyncio.run(use()) == [["hi", "hi"], [3, 7]]
    with pytest.raises(WorkerConfigurationError, match="one tuple for each of the 2"):
        role.map("add", [(1, 2)])


def test_options_do_not_share_a_namespace_with_arguments(role: Role) -> None:
    """A method's own argument `timeout` reaches the method, beside the option of that name."""
    role.create_engine(Echo)
    assert role[0].with_options(timeout=30).call("add", 1, timeout=5) == 6


def test_several_named_engines_live_in_one_worker(actor: Role, kept: Scheduler) -> None:
    """Engines of different names in one worker are addressed by name."""
    first, second = (actor[:2].with_options(engine=name) for name in ("named first", "named second"))
    first.create_engine(Echo, "first")
    second.create_engine(Echo, "second")
    assert first.call("greet") == ["first"] * 2
    assert second.call("greet") == ["second"] * 2
    assert kept.call_engine("actor/0", "greet", "named second") == "second"


def test_a_second_engine_of_the_same_name_is_refused(role: Role) -> None:
    """Creating an engine under a taken name fails and leaves the first engine alone."""
    role.create_engine(Echo)
    with pytest.raises(EngineCreationError, match="engine of that name"):
        role.create_engine(Echo)
    assert role[0].call("greet") == "hello"


def test_an_exception_comes_back_with_type_message_and_traceback(role: Role) -> None:
    """An engine's exception arrives as EngineCallError with worker, method, type, message and traceback."""
    role.create_engine(Echo)
    with pytest.raises(EngineCallError) as caught:
        role[0].call("fail", "broken on purpose")
    error = caught.value
    assert (error.worker_id, error.method) == ("actor/0", "fail")
    assert error.remote_type == "builtins.ValueError"
    assert error.remote_message == "broken on purpose"
    assert "in fail" in error.traceback


def test_an_attribute_error_in_user_code_is_not_a_missing_method(role: Role) -> None:
    """An AttributeError raised by a method, a missing method and a missing engine are three different errors."""
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
def test_the_standard_library_is_refused_as_an_engine(role: Role, path: str) -> None:
    """A class of the standard library cannot be made an engine by its path."""
    with pytest.raises(EngineImportError):
        role.create_engine(path)


def test_a_class_that_is_not_there_is_an_import_error(role: Role) -> None:
    """A path that cannot be imported fails with EngineImportError, and the worker stays usable."""
    for path in (
        "no_such_package.Engine",
        f"{ENGINES}.NoSuchClass",
        f"{ENGINES}:Path",
    ):
        with pytest.raises(EngineImportError):
            role.create_engine(path)
    role.create_engine(f"{ENGINES}.Echo")
    assert role[0].call("greet") == "hello"


def test_a_constructor_that_raises_leaves_the_name_free(role: Role) -> None:
    """After a failed constructor an engine of the same name can be created."""
    with pytest.raises(EngineCreationError, match="no such model"):
        role.create_engine(sample_engines.BadConstructor)
    role.create_engine(Echo)
    assert role[0].call("greet") == "hello"


def test_what_does_not_travel_is_named_by_its_place_and_the_worker_lives_on(role: Role) -> None:
    """Arguments and results that are not serializable fail with their place inside the value."""
    role.create_engine(Echo)
    with pytest.raises(EncodeError, match="function"):
        role[0].call("echo", {"fn": lambda: 1})
    with pytest.raises((EncodeError, EngineCallError), match=r"fn.*\[0\].*lock"):
        role[0].call("unencodable")
    assert role[0].call("greet") == "hello"


def test_plain_methods_run_one_at_a_time_in_order_on_one_thread(role: Role) -> None:
    """However many calls are under way at once, each finds itself alone, on the thread of the first."""
    role.create_engine(sample_engines.Turns)
    pending = [role[0].submit("enter", number) for number in range(100)]
    seen = [call.result() for call in pending]
    assert {most for most, _ in seen} == {1}
    assert len({thread for _, thread in seen}) == 1
    assert role[0].call("entered") == list(range(100))


def test_async_methods_run_beside_each_other_and_beside_a_plain_one(role: Role) -> None:
    """A hundred of them meet while a plain method waits for what only an async one will do."""
    role.create_engine(sample_engines.Turns)
    waiting = role[0].submit("wait_until_released")

    async def meet() -> list[Any]:
        return list(await asyncio.gather(*(role[0].acall("meet", 100) for _ in range(100))))

    assert asyncio.run(meet()) == [100] * 100
    assert asyncio.run(role[0].acall("release")) == 1
    assert waiting.result() == "released"


def test_generators_stream(role: Role) -> None:
    """Items of generators and async generators arrive one by one and in order."""
    role.create_engine(Echo)
    assert list(role[0].stream("numbers", 100)) == list(range(100))
    assert list(role[0].stream("tokens", 50)) == [f"t{i}" for i in range(50)]

    async def collect() -> list[str]:
        return [item async for item in role[0].astream("tokens", 3)]

    assert asyncio.run(collect()) == ["t0", "t1", "t2"]


def test_a_deadline_is_kept_and_says_what_to_do(role: Role) -> None:
    """A call that exceeds its timeout fails with the command that shows the worker's stack."""
    role.create_engine(Echo)
    with pytest.raises(WorkerTimeoutError, match="rolecall stack actor/0"):
        role[0].with_options(timeout=0.2).call("sleep", 1.0)
    assert role[0].call("greet") == "hello"


def test_cancelling_reaches_an_async_method(role: Role, tmp_path: Path) -> None:
    """Cancelling the awaiting task raises CancelledError inside the engine's async method."""
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


@pytest.mark.slow("workers that import torch")
def test_tensors_come_whole_by_default_and_as_handles_on_request(role: Role) -> None:
    """Handles can be concatenated, split, passed to other workers and fetched; the controller gives some away."""
    import torch

    import rolecall

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
    given = rolecall.remotize({"x": torch.ones(3, 4)}, worker=role[1])
    assert [shard.owner for shard in given["x"].shards] == [role[1].id]
    assert role[0].call("total", given["x"]) == 12


def test_arrays_are_left_as_handles_as_tensors_are(role: Role) -> None:
    """They are joined, split, fetched, and arrive in other workers as arrays; what has fields comes whole."""
    import numpy

    import rolecall

    role.create_engine(sample_engines.Arrays)
    assert numpy.array_equal(role[0].call("make", 2, 1.0)["x"], numpy.ones((2, 4), "f4"))
    parts = role.with_options(tensors="remote").map("make", [(3, 1.0), (5, 2.0)])
    batch = rolecall.RTensor.cat([part["x"] for part in parts])
    assert (batch.kind, batch.dtype, batch.shape) == ("numpy", numpy.dtype("f4"), (8, 4))
    assert role[0].call("read", batch) == "numpy.ndarray float32 (8, 4) 52.0"
    first, second = batch.split(4)
    assert [text.split()[-1] for text in role.map("read", [(first,), (second,)])] == ["20.0", "32.0"]
    assert numpy.array_equal(rolecall.localize(batch[2:4]), numpy.array([[1.0] * 4, [2.0] * 4], "f4"))
    big = parts[0]["big"]
    assert [text.split()[-1] for text in role.call("read", big) + role.call("read", big)] == ["262144.0"] * 4
    got = rolecall.localize(parts[1])
    assert got["dates"].tolist()[1].day == 2 and got["big"].sum() == 2 << 18
    assert isinstance(parts[1]["named"], numpy.ndarray)  # it has fields, which a handle does not know


def test_an_engine_is_told_in_its_turn_that_arguments_are_lost(role: Role, kept: Scheduler) -> None:
    """Whom its peers wait for in a collective can say so to them before it runs what was sent behind that call."""
    import rolecall

    role.create_engine(sample_engines.Arrays)
    lost = role[0].with_options(tensors="remote").call("make", 2, 1.0)["x"]
    rolecall.clear(lost)
    assert kept.home.flush()
    reading, noting = role[1].submit("read", lost, step=3), role[1].submit("note", "after")
    assert noting.result() == [["read", ["RTensor"], {"step": 3}, "ShardNotFoundError"], "after"]
    with pytest.raises(ShardNotFoundError):
        reading.result()


@pytest.mark.slow("workers that import torch")
def test_a_constructor_is_given_tensors_for_handles(role: Role) -> None:
    """A handle among a constructor's arguments arrives as its tensor."""
    role.create_engine(sample_engines.Tensors)
    reader = role.with_options(engine="reader")
    reader.create_engine(sample_engines.Reader, role[0].with_options(tensors="remote").call("make", 5)["x"])
    assert reader.call("made_with") == [20.0] * 2
