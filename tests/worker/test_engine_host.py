"""What an engine host promises to whoever asks. The same tests run over frames and over HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.support import sample_engines
from tests.worker.callers import Caller, FailedError, FramesCaller, HttpCaller, path, until
from tests.worker.rig import Rig
from tests.worker.worker_engines import Items, Odd, Saboteur, Turns


@pytest.fixture
def echo(ask: Caller, engine: str) -> Iterator[dict[str, Any]]:
    """What names an Echo of this test's own."""
    ask.create(path(sample_engines.Echo), name=engine)
    yield {"engine_name": engine}
    ask.ask("destroy", engines=[engine])


def refused(ask: Caller, method: str, *args: Any, named: dict[str, Any] | None = None, **kwargs: Any) -> FailedError:
    with pytest.raises(FailedError) as failed:
        ask.call(method, *args, named=named, **kwargs)
    return failed.value


# Results


def test_methods_of_every_kind_give_their_results(ask: Caller, echo: dict[str, Any]) -> None:
    """Plain and `async` ones, with positional and keyword arguments."""
    assert ask.call("add", 1, b=2, named=echo) == 3
    assert ask.call("echo", {"x": [1, None, "é", 2.5]}, named=echo) == {"x": [1, None, "é", 2.5]}
    assert ask.call("later", [1, 2], seconds=0.01, named=echo) == [1, 2]


def test_the_engine_is_named_or_the_workers_own(ask: Caller, engine: str) -> None:
    """Several engines in one worker; without a name the one that is called as the worker is."""
    ask.create(path(sample_engines.Echo), "own")
    answer = ask.create(path(sample_engines.Echo), name=engine, greeting="named")
    assert answer["engine_name"] == engine
    assert ask.call("greet") == "own"
    assert ask.call("greet", named={"engine_name": engine}) == "named"
    assert {"actor/0", engine} <= set(ask.ask("health")["engines"])
    assert ask.ask("destroy", engines=["actor/0", engine]) == {}


def test_rpc_meta_reaches_methods_that_declare_it(ask: Caller, engine: str) -> None:
    """And no other; the worker does not know what it means."""
    ask.create(path(sample_engines.Meta), name=engine)
    named = {"engine_name": engine, "rpc_meta": {"broadcast": True}}
    assert ask.call("declared", 1, named=named) == [1, {"broadcast": True}]
    assert ask.call("waiting", named=named) == {"broadcast": True}
    assert ask.call("declared", 1, named={"engine_name": engine}) == [1, None]
    ask.ask("destroy", engines=[engine])


# Errors


def test_each_error_has_its_kind_and_status(ask: Caller, echo: dict[str, Any]) -> None:
    """404 unknown engine; 400 unknown method, result without a form, malformed request; 500 the method's own."""
    found = {
        "no engine": refused(ask, "greet", named={"engine_name": "nobody"}),
        "no method": refused(ask, "gret", named=echo),
        "raised": refused(ask, "fail", "no luck", named=echo),
        "wrong arguments": refused(ask, "add", 1, 2, 3, 4, named=echo),
        "unencodable": refused(ask, "unencodable", named=echo),
        "unknown field": refused(ask, "greet", named={**echo, "enigne": 1}),
        "wrong type": refused(ask, "greet", named={**echo, "tensors": "somewhere"}),
        "a stream": refused(ask, "numbers", 3, named=echo),
    }
    kinds = {name: failed.kind for name, failed in found.items()}
    assert kinds == {
        "no engine": "EngineNotFoundError",
        "no method": "MethodNotFoundError",
        "raised": "EngineCallError",
        "wrong arguments": "EngineCallError",
        "unencodable": "EncodeError",
        "unknown field": "ProtocolError",
        "wrong type": "ProtocolError",
        "a stream": "EngineCallError",
    }
    if isinstance(ask, HttpCaller):
        assert [failed.status for failed in found.values()] == [404, 400, 500, 500, 400, 400, 400, 500]
    assert "enigne" in found["unknown field"].message and "greet" in found["no method"].message
    assert ask.call("greet", named=echo) == "hello"


def test_a_methods_error_comes_with_type_message_and_traceback(ask: Caller, echo: dict[str, Any]) -> None:
    """The traceback begins in the engine's code, not in ours."""
    failed = refused(ask, "fail", "no luck", named=echo)
    assert failed.type == "builtins.ValueError" and "no luck" in failed.message
    assert "in fail" in failed.traceback and "rolecall/worker" not in failed.traceback
    missing = refused(ask, "missing_attribute", named=echo)
    assert (missing.kind, missing.type) == ("EngineCallError", "builtins.AttributeError")


def test_errors_that_are_hard_to_report_are_reported(ask: Caller, engine: str) -> None:
    """An exception whose text cannot be had, or is no text; the engine thread lives on."""
    ask.create(path(Odd), name=engine)
    named = {"engine_name": engine}
    mute = refused(ask, "mute", named=named)
    assert mute.kind == "EngineCallError" and mute.type.endswith("worker_engines.MutedError")
    assert "half a character" in refused(ask, "surrogates", named=named).message
    assert ask.call("greet", named=named) == "hello"
    ask.ask("destroy", engines=[engine])


def test_engines_that_cannot_be_made_are_refused_and_their_name_is_free(ask: Caller, engine: str) -> None:
    """Unknown and forbidden paths; a constructor that raises, with its traceback; a name that is taken."""
    for bad in ("no_such_module.Engine", "tests.support.sample_engines.Nothing", "os.system"):
        with pytest.raises(FailedError) as failed:
            ask.create(bad, name=engine)
        assert failed.value.kind == "EngineImportError" and failed.value.status in (None, 400)
    with pytest.raises(FailedError, match="no such model") as failed:
        ask.create(path(sample_engines.BadConstructor), name=engine)
    assert failed.value.kind == "EngineCreationError" and "in __init__" in failed.value.traceback
    ask.create(path(sample_engines.Echo), name=engine)
    with pytest.raises(FailedError, match="of that name") as failed:
        ask.create(path(sample_engines.Echo), name=engine)
    assert failed.value.status in (None, 400)
    ask.ask("destroy", engines=[engine])


def test_a_method_is_looked_up_before_anything_of_the_call_is_done(ask: Caller, engine: str) -> None:
    """With an unknown method not even the handles among the arguments are fetched."""
    ask.create(path(sample_engines.Tensors), name=engine)
    named = {"engine_name": engine, "tensors": "remote"}
    batch = ask.call("make", 2, named=named)
    ask.ask("data.clear", shard_ids=shard_ids(batch))
    assert refused(ask, "totl", batch["x"], named=named).kind == "MethodNotFoundError"
    lost = refused(ask, "total", batch["x"], named=named)
    assert lost.kind == "ShardNotFoundError" and lost.status in (None, 400)
    ask.ask("destroy", engines=[engine])


@pytest.mark.parametrize("kind", ["KeyError", "TypeError", "ValueError"])
def test_a_bug_of_ours_is_told_as_one_and_never_as_a_malformed_request(
    rig: Rig, ask: Caller, kind: str, tmp_path: Path
) -> None:
    """In dispatch and in a control method; the worker's log has the traceback, and the worker goes on."""
    role = rig.scheduler.start("sick")
    try:
        with ExitStack() as stack:
            sick = _sick(rig, ask, stack)
            sick.create(path(Saboteur))
            assert sick.call("trip") == "nothing is planted"
            sick.call("plant", kind)
            clear = {"shard_ids": ["0" * 32]}
            with pytest.raises(FailedError) as cleared:
                sick.ask("data.clear", **clear)
            for failed in (refused(sick, "trip"), cleared.value):
                assert (failed.kind, failed.type) == ("InternalError", f"builtins.{kind}")
                assert failed.status in (None, 500)
                assert "internal error" in failed.message and "malformed" not in failed.message
            assert sick.ask("health")["worker"] == "sick/0"
            assert refused(sick, "plnt").kind == "MethodNotFoundError"
        log = (Path(rig.scheduler.run_dir) / "logs" / "sick-0.log").read_text()
        assert log.count("Traceback") >= 2 and log.count(f"{kind}: ") >= 2 and "in trip" not in log
    finally:
        role.delete()


def _sick(rig: Rig, ask: Caller, stack: ExitStack) -> Caller:
    """As `ask`, for the worker `sick/0`."""
    socket = rig.runtime_dir / "w" / "sick-0.sock"
    if isinstance(ask, HttpCaller):
        return HttpCaller(str(socket), rig.token)
    return FramesCaller(stack.enter_context(rig.dial("sick/0", socket)))


# Tensors


def shard_ids(value: Any) -> list[str]:
    """The ids of all handles in an answer, whichever form they have."""
    if isinstance(value, dict) and "$rtensor" in value:
        return [shard[0] for shard in value["$rtensor"]["shards"]]
    if isinstance(value, dict):
        return [found for item in value.values() for found in shard_ids(item)]
    return [shard.id for shard in value.shards]


def test_handles_of_an_answer_are_arguments_of_a_later_call(rig: Rig, ask: Caller, engine: str) -> None:
    """Also of a call to another worker, and of a constructor: engines are given tensors."""
    ask.create(path(sample_engines.Tensors), name=engine)
    named = {"engine_name": engine, "tensors": "remote"}
    batch = ask.call("make", 3, 2.0, named=named)
    assert ask.call("total", batch["x"], named=named) == 24.0
    assert ask.call("shape", batch["x"], named=named) == [3, 4]
    with ExitStack() as stack:
        other: Caller = rig.http(1) if isinstance(ask, HttpCaller) else FramesCaller(stack.enter_context(rig.client(1)))
        other.create(path(sample_engines.Reader), batch["x"], name=engine)
        assert other.call("made_with", named={"engine_name": engine}) == 24.0
        other.call("add", x=batch["ids"], named={"engine_name": engine})
        other.ask("destroy", engines=[engine])
    cleared = ask.ask("data.clear", shard_ids=shard_ids(batch))
    assert cleared["cleared_count"] == 2
    assert ask.ask("destroy", engines=[engine]) == {}


def test_streams_leave_their_tensors_behind_too(ask: Caller, engine: str) -> None:
    """Each item is a handle of its own."""
    ask.create(path(sample_engines.Tensors), name=engine)
    items = list(ask.stream("make_many", 3, named={"engine_name": engine, "tensors": "remote"}))
    ids = [i for item in items for i in shard_ids(item)]
    assert len(set(ids)) == 3
    assert ask.ask("data.clear", shard_ids=ids)["cleared_count"] == 3
    ask.ask("destroy", engines=[engine])


# Streams


def test_generators_stream(ask: Caller, echo: dict[str, Any]) -> None:
    """Plain and `async` ones, in order, whole."""
    assert list(ask.stream("numbers", 200, named=echo)) == list(range(200))
    assert list(ask.stream("tokens", 50, named=echo)) == [f"t{i}" for i in range(50)]
    assert list(ask.stream("numbers", 0, named=echo)) == []


def test_a_stream_that_fails_gives_its_items_first(ask: Caller, engine: str) -> None:
    """Then the error, with type and traceback; one that fails before its first item is refused as a call is."""
    ask.create(path(Items), name=engine)
    for count in (2, 0):
        got = []
        with pytest.raises(FailedError) as failed:
            for item in ask.stream("then_fails", count, named={"engine_name": engine}):
                got.append(item)
        assert got == list(range(count))
        assert (failed.value.kind, failed.value.type) == ("EngineCallError", "builtins.ValueError")
        assert "in then_fails" in failed.value.traceback
        if isinstance(ask, HttpCaller):
            assert failed.value.status == (200 if count else 500)
    ask.ask("destroy", engines=[engine])


def test_a_reader_that_has_had_enough_ends_the_stream(ask: Caller, engine: str) -> None:
    """The generator is closed, not left waiting."""
    ask.create(path(sample_engines.Streams), name=engine)
    named = {"engine_name": engine}
    stream = ask.stream("endless", named=named)
    assert [next(stream) for _ in range(100)] == list(range(100))
    assert ask.call("count", named=named) == 1
    stream.close()  # type: ignore[attr-defined]
    until(lambda: ask.call("count", named=named) == 0)
    ask.ask("destroy", engines=[engine])


def test_a_slow_reader_slows_the_stream_down(ask: Caller, engine: str) -> None:
    """Only so many items are made ahead of it, however many there could be."""
    ask.create(path(Items), name=engine)
    named = {"engine_name": engine}
    stream = ask.stream("blocks", named=named)
    next(stream)
    looks: list[int] = []

    def settled() -> bool:
        looks.append(ask.call("how_many", named=named))
        return len(looks) > 20 and looks[-1] == looks[-20]

    until(settled)
    assert looks[-1] < 64
    stream.close()  # type: ignore[attr-defined]
    ask.ask("destroy", engines=[engine])


# Order, cancellation, progress


def test_plain_methods_take_turns_and_async_ones_run_beside(ask: Caller, engine: str, tmp_path: Path) -> None:
    """One at a time on one thread, while `async` methods are answered."""
    ask.create(path(Turns), name=engine)
    named, gate = {"engine_name": engine}, tmp_path / "gate"
    turns = [ask.begin("turn", str(gate), named=named) for _ in range(3)]
    until(lambda: ask.call("seen", named=named)["inside"] == 1)
    until(lambda: numbers(ask)["calls_waiting"] == 2)
    gate.touch()
    for turn in turns:
        turn.result()
    assert ask.call("seen", named=named) == {"inside": 0, "most": 1, "ran": 3, "threads": 1}
    ask.ask("destroy", engines=[engine])


def test_turns_are_taken_across_frames_and_http(rig: Rig, tmp_path: Path) -> None:
    """However many ways lead to an engine, it has one thread."""
    gate, named = tmp_path / "gate", {"engine_name": "shared"}
    with rig.client() as client:
        callers: list[Caller] = [FramesCaller(client), rig.http()]
        callers[0].create(path(Turns), name="shared")
        turns = [caller.begin("turn", str(gate), named=named) for caller in callers * 2]
        until(lambda: callers[1].call("seen", named=named)["inside"] == 1)
        gate.touch()
        for turn in turns:
            turn.result()
        assert callers[0].call("seen", named=named) == {"inside": 0, "most": 1, "ran": 4, "threads": 1}
        callers[0].ask("destroy", engines=["shared"])


def test_a_caller_that_gives_up_cancels_an_async_method(ask: Caller, echo: dict[str, Any], tmp_path: Path) -> None:
    """Over HTTP that is a client that hangs up."""
    seen = tmp_path / "cancelled"
    call = ask.begin("until_cancelled", str(seen), named=echo)
    until(Path(f"{seen}.started").exists)
    call.give_up()
    until(seen.exists)
    assert ask.call("greet", named=echo) == "hello"


def test_a_call_given_up_before_its_turn_is_not_run(ask: Caller, engine: str, tmp_path: Path) -> None:
    """The one that runs goes on."""
    ask.create(path(Turns), name=engine)
    named, gate = {"engine_name": engine}, tmp_path / "gate"
    first = ask.begin("turn", str(gate), named=named)
    until(lambda: ask.call("seen", named=named)["inside"] == 1)
    second = ask.begin("turn", str(gate), named=named)
    until(lambda: numbers(ask)["calls_waiting"] == 1)
    second.give_up()
    ask.call("seen", named=named)  # by then the worker has heard of it
    gate.touch()
    first.result()
    until(lambda: numbers(ask)["calls_waiting"] == 0)
    assert ask.call("seen", named=named)["ran"] == 1
    ask.ask("destroy", engines=[engine])


def test_calls_count_as_progress_while_they_run(ask: Caller, engine: str, tmp_path: Path) -> None:
    """Begun when they begin, ended when they end: by this the guard tells a busy worker from one that hangs."""
    ask.create(path(Turns), name=engine)
    named, gate = {"engine_name": engine}, tmp_path / "gate"
    before = numbers(ask)
    turn = ask.begin("turn", str(gate), named=named)
    until(lambda: numbers(ask)["calls_begun"] == before["calls_begun"] + 1)
    assert numbers(ask)["calls_ended"] == before["calls_ended"]
    gate.touch()
    turn.result()
    until(lambda: numbers(ask)["calls_ended"] == before["calls_ended"] + 1)
    ask.call("seen", named=named)
    until(lambda: numbers(ask)["calls_ended"] == before["calls_ended"] + 2)
    ask.ask("destroy", engines=[engine])


def numbers(ask: Caller) -> dict[str, Any]:
    """The worker's metrics as JSON."""
    found = ask.send("GET", "/metrics?format=json").result() if isinstance(ask, HttpCaller) else ask.ask("metrics")
    return dict(found)


# The other methods


def test_control_methods_answer_the_same(rig: Rig, ask: Caller) -> None:
    """Health, ports, environment, forks, seeds, stacks: what they do and what they say."""
    health = ask.ask("health")
    assert health["status"] == "ok" and health["worker"] == "actor/0" and health["forked_children"] == []
    assert len(set(ask.ask("alloc_ports", count=2)["ports"])) == 2
    assert ask.ask("set_env", env={"COLOUR": "red"}) == {"status": "ok"}
    fork = ask.ask("fork", role="ref", worker_index=0)
    assert ask.ask("health")["forked_children"] == ["ref/0"] and fork["pid"] != health["pid"]
    assert ask.ask("kill_forked_worker", role="ref", worker_index=0) == {"status": "ok"}
    with pytest.raises(FailedError) as failed:
        ask.ask("kill_forked_worker", role="ref", worker_index=0)
    assert failed.value.kind == "WorkerNotFoundError" and failed.value.status in (None, 404)
    seeds = [ask.ask("configure", config={"seed": 7}, role="actor", rank=rank)["seed"] for rank in (0, 0, 1)]
    assert seeds[0] == seeds[1] != seeds[2]


def test_stacks_name_the_engine_threads(ask: Caller, echo: dict[str, Any], tmp_path: Path) -> None:
    """A worker shows where each of its threads is."""
    assert f"Thread engine {echo['engine_name']}" in ask.ask("stacks")


def test_requests_that_are_not_understood_are_refused(ask: Caller) -> None:
    """A missing, an unknown and a wrong field, by name; nothing is done."""
    for method, fields, seen in (
        ("alloc_ports", {}, "count"),
        ("alloc_ports", {"count": 2, "cuont": 3}, "cuont"),
        ("set_env", {"env": {"A": 1}}, "env"),
        ("data.clear", {"shard_ids": "all"}, "shard_ids"),
        ("destroy", {"engines": "all"}, "engines"),
    ):
        with pytest.raises(FailedError, match=seen) as failed:
            ask.ask(method, **fields)
        assert failed.value.kind == "ProtocolError" and failed.value.status in (None, 400)
