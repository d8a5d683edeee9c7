"""What the controller's own process may look like, and do, without harm to its run."""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import rolecall
from rolecall import LocalScheduler, Role
from rolecall.errors import WorkerConfigurationError
from tests.support import live, sample_engines
from tests.support.checkout import PYTHONPATH
from tests.support.waiting import wait_for

pytestmark = pytest.mark.slow("controllers that are programs of their own")

Echo = sample_engines.Echo
SCRIPT = """
import os, sys
from tests.support.sample_engines import Echo
from rolecall import LocalScheduler
if __name__ == "__main__":
    with LocalScheduler(fileroot=sys.argv[1], preload=[]) as s:
        role = s.start("a")
        role.create_engine(Echo)
        os.write(int(sys.argv[2]), role.call("greet")[0].encode())
"""


@pytest.fixture
def s(tmp_path: Path) -> Iterator[LocalScheduler]:
    with LocalScheduler(experiment="controller", trial="t", fileroot=tmp_path, preload=[]) as scheduler:
        yield scheduler


def run_script(fileroot: Path, redirect: str = "", **env: str | bytes) -> str:
    """Runs a controller below a shell; returns what its worker answered."""
    ours, theirs = os.pipe()
    command = f'exec {sys.executable} -c "$SCRIPT" {fileroot} {theirs} {redirect}'
    names: dict[Any, Any] = {**os.environ, "SCRIPT": SCRIPT, "PYTHONPATH": PYTHONPATH, **env}
    try:
        subprocess.run(["sh", "-c", command], pass_fds=[theirs], env=names, timeout=60)
    finally:
        os.close(theirs)
    with os.fdopen(ours) as answer:
        return answer.read()


@pytest.mark.parametrize("redirect", [">&-", "<&- >&- 2>&-"])
def test_a_controller_without_standard_files_runs(tmp_path: Path, redirect: str) -> None:
    """A run works with any of stdin, stdout and stderr closed."""
    assert run_script(tmp_path, redirect=redirect) == "hello"


def test_an_environment_that_is_no_utf8_does_no_harm(tmp_path: Path) -> None:
    """A variable that is no UTF-8 is passed to workers without an error."""
    assert run_script(tmp_path, NAME=b"caf\xe9") == "hello"


def test_a_folder_that_was_deleted_is_named_as_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A scheduler made in a deleted current folder fails with that reason."""
    folder = tmp_path / "gone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()
    with pytest.raises(WorkerConfigurationError, match="current folder was deleted"):
        LocalScheduler(fileroot=tmp_path, preload=[])


def test_runs_without_a_name_that_begin_in_the_same_second_are_two_runs(tmp_path: Path) -> None:
    """Default trial names are unique."""
    with LocalScheduler(fileroot=tmp_path, preload=[]) as a, LocalScheduler(fileroot=tmp_path, preload=[]) as b:
        for s in (a, b):
            s.start("actor").create_engine(Echo)
        assert a.run_dir != b.run_dir


def test_a_run_directory_may_have_any_name(tmp_path: Path) -> None:
    """Blanks, other alphabets, shell characters and long names in the path do no harm."""
    with LocalScheduler(fileroot=tmp_path / "a b" / "ü$HOME" / ("x" * 200), preload=[]) as s:
        role = s.start("actor")
        role.create_engine(Echo)
        assert role.call("greet") == ["hello"]


def test_a_scheduler_may_live_in_any_thread(tmp_path: Path) -> None:
    """A scheduler made and closed outside the main thread works."""
    seen: list[Any] = []

    def live() -> None:
        with LocalScheduler(fileroot=tmp_path, preload=[]) as s:
            role = s.start("actor")
            role.create_engine(Echo)
            seen.append(role.call("greet"))

    thread = threading.Thread(target=live)
    thread.start()
    thread.join(60)
    assert seen == [["hello"]]


def test_a_fork_of_the_controller_harms_nothing_and_is_refused(s: LocalScheduler) -> None:
    """As `DataLoader` and `multiprocessing` make them: the child shares the sockets of its parent."""
    role = s.start("actor")
    role.create_engine(Echo)
    answers = multiprocessing.get_context("fork").SimpleQueue()

    def child() -> None:
        for use in (lambda: role.call("greet"), lambda: s.start("mine"), lambda: s.delete_workers("actor")):
            try:
                use()
            except WorkerConfigurationError as e:
                answers.put(str(e))
        s.close()

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join(30)
    assert process.exitcode == 0
    for _ in range(3):
        assert "forked from the controller" in answers.get()
    assert role.call("greet") == ["hello"]


def test_the_environment_is_changed_from_inside_a_running_loop(s: LocalScheduler) -> None:
    """`set_env` and `aset_env` both work from a coroutine."""
    role = s.start("actor", replicas=2)
    role.create_engine(Echo)

    async def change() -> None:
        role.set_env({"COLOUR": "red"})
        await role.aset_env({"SHAPE": "round"})

    asyncio.run(change())
    assert role.call("environment", "COLOUR", "SHAPE") == [{"COLOUR": "red", "SHAPE": "round"}] * 2


def test_a_role_with_a_dead_worker_is_not_called_at_all(s: LocalScheduler) -> None:
    """The others would wait for it in their collective, for ever."""
    role = s.start("actor", replicas=3)
    role.create_engine(Echo)
    with pytest.raises(rolecall.errors.WorkerFailedError):
        role[2].call("leave", 1)
    with pytest.raises(rolecall.errors.WorkerFailedError):
        role.call("echo", 1)
    assert [role[i].call("calls") for i in (0, 1)] == [0, 0]


def test_a_stream_that_nobody_reads_ends_when_its_iterator_goes(s: LocalScheduler) -> None:
    """Dropping an iterator closes the generator on the worker, begun or not."""
    role = s.start("actor")
    role.create_engine(sample_engines.Streams)
    unread, begun = role[0].stream("endless"), role[0].stream("endless")
    assert next(begun) == 0
    wait_for(lambda: role[0].call("count") == 2, 5, "both streams")
    del unread, begun
    gc.collect()
    wait_for(lambda: role[0].call("count") == 0, 5, "end of both streams")


def test_a_method_that_is_replaced_is_called_in_its_new_form(s: LocalScheduler) -> None:
    """A method that an engine replaces at run time is called as it is now."""
    role = s.start("actor")
    role.create_engine(sample_engines.Streams)
    assert role[0].call("count") == 0
    role[0].call("replace_count")
    assert role[0].call("count") == -1


def test_handles_are_held_until_the_answer_also_when_nobody_waits_for_it(s: LocalScheduler, tmp_path: Path) -> None:
    """Arguments of a call that was only submitted are not freed before it has run."""
    owner = s.start("owner").with_options(tensors="remote")
    owner.create_engine(sample_engines.Tensors)
    reader = s.start("reader")
    reader.create_engine(sample_engines.Reader)
    release = tmp_path / "release"
    reader[0].submit("wait_for", str(release))
    reader[0].submit("add", owner[0].call("make", 5)["x"])
    gc.collect()
    s.home.flush()
    release.touch()
    assert reader[0].call("made_with") == 20.0


def stored(s: LocalScheduler, worker_id: str) -> int:
    return live.shards(s, f"w/{worker_id.replace('/', '-')}.sock")["shards"]


def test_tensors_that_nobody_will_read_are_freed(s: LocalScheduler, tmp_path: Path) -> None:
    """A call that was given up still leaves its result behind, and a stream those of its items that were not read."""
    role = s.start("rollout").with_options(tensors="remote")
    role.create_engine(sample_engines.Tensors)
    release = tmp_path / "release"
    pending = role[0].submit("make_late", str(release))
    stream = role[0].stream("make_many", 100)
    kept = next(stream)
    wait_for(lambda: stored(s, "rollout/0") > 1 and release.with_suffix(".begun").exists(), 5, "items and call")
    pending.cancel()
    del stream
    release.touch()
    wait_for(lambda: stored(s, "rollout/0") == 1, 10, "only what is read to be kept")
    assert float(rolecall.localize(kept).sum()) == 3.0


def test_a_method_that_declares_rpc_meta_gets_it_and_no_other(s: LocalScheduler) -> None:
    """`rpc_meta` reaches exactly those methods that declare it."""
    s.start("actor").create_engine(sample_engines.Meta)
    meta = {"broadcast": True}
    assert s.call_engine("actor/0", "declared", None, 1, rpc_meta=meta) == [1, meta]
    assert s.call_engine("actor/0", "declared", None, 1) == [1, None]
    assert s.call_engine("actor/0", "anything", None, 1, rpc_meta=meta) == [1, {}]
    assert s.call_engine("actor/0", "waiting", rpc_meta=meta) == meta


def test_limits_are_options(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """`destroy_s` bounds the plain and the awaited part of `destroy()` together; `stall_s` reaches guards."""
    stalled = threading.Event()
    with LocalScheduler(fileroot=tmp_path, preload=[], destroy_s=1.0, stall_s=0.5) as s:
        s.subscribe(lambda topic, facts: stalled.set() if topic == "stalled" else None)
        role = s.start("actor", replicas=2)
        role.create_engine(sample_engines.SlowEnd, 0.7)
        role[0].submit("hold_the_interpreter", 60.0)
        assert stalled.wait(30)
        s.delete_workers("actor")
    assert "engine actor/1: destroy() took more than 1 s" in caplog.text


def test_a_limit_that_is_no_time_is_refused(tmp_path: Path) -> None:
    """Each is named."""
    for name in ("destroy_s", "grace_s", "start_timeout", "lease_s", "stall_s", "silence_s"):
        with pytest.raises(WorkerConfigurationError, match=f"bad {name}"):
            LocalScheduler(fileroot=tmp_path, **{name: -1.0})  # type: ignore[arg-type]


def test_forked_workers_draw_different_random_numbers(tmp_path: Path) -> None:
    """Else all rollout workers would sample the same."""
    with LocalScheduler(fileroot=tmp_path) as s:
        role: Role = s.start("rollout", replicas=3)
        role.create_engine(sample_engines.Random)
        for drawn in zip(*role.call("draw"), strict=True):
            assert len(set(drawn)) == 3


def test_what_only_a_cluster_understands_is_passed_over_and_named(
    s: LocalScheduler, caplog: pytest.LogCaptureFixture
) -> None:
    """The local scheduler logs the options that it ignores."""
    s.start("actor", nodelist="n[1-2]", image="/images/a.sif", cpu=9999)
    assert "role actor: image, nodelist have no effect on one machine" in caplog.text
    assert f"role actor: cpu=9999, and this machine has {os.cpu_count()} core(s): so many threads" in caplog.text
