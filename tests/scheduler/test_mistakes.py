"""Common mistakes are answered with a message that says what to do."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rolecall import LocalScheduler, SchedulingSpec
from rolecall.errors import (
    EncodeError,
    EngineCallError,
    EngineNotFoundError,
    GPUAllocationError,
    WorkerConfigurationError,
    WorkerFailedError,
)
from tests.support.calling_engines import Calling
from tests.support.checkout import SOURCES
from tests.support.sample_engines import Echo


@pytest.fixture
def s(tmp_path: Path) -> Iterator[LocalScheduler]:
    with LocalScheduler(experiment="mistakes", trial="t", fileroot=tmp_path, preload=[]) as s:
        yield s


def test_a_call_before_any_engine_says_to_make_one(s: LocalScheduler) -> None:
    """The error names `create_engine`."""
    with pytest.raises(EngineNotFoundError, match=r"known: none\); create one with create_engine first"):
        s.start("early").call("greet")


def test_only_what_can_be_called_is_offered(s: LocalScheduler) -> None:
    """The error for a missing method lists the methods of the engine, not its attributes."""
    role = s.start("offers")
    role.create_engine("tests.support.crashing.Crashing")
    with pytest.raises(EngineNotFoundError, match=r"no method 'size' .*\(known: crash, name\)"):
        role.call("size")


def test_a_result_that_does_not_travel_names_the_method_and_the_worker(s: LocalScheduler) -> None:
    """The error names place, method and worker."""
    role = s.start("results")
    role.create_engine(Echo)
    with pytest.raises(EncodeError, match=r"result\['fn'\]\[0\] of unencodable\(\) on results/0: .*lock"):
        role.call("unencodable")


def test_large_plain_values_travel(s: LocalScheduler) -> None:
    """More than a header of 64 MiB holds: long texts, and lists of numbers as arguments and as results."""
    role = s.start("large")
    role.create_engine(Calling, "large/0")
    texts = ["é" * (33 << 20), *["text" * 100] * 10]
    assert role[0].call("echo", texts) == texts
    many = {"x": [0.5] * 8_000_000}
    assert role[0].call("echo", many) == many
    assert role[0].call("repeat", 0.5, 8_000_000) == many


def test_a_method_that_returns_no_stream_says_how_to_call_it(s: LocalScheduler) -> None:
    """Streaming a plain method fails and shows the call to use."""
    role = s.start("streams")
    role.create_engine(Echo)
    with pytest.raises(EngineCallError, match=r"returned int, which cannot be streamed; use .call\('calls', ...\)"):
        list(role[0].stream("calls"))


def test_a_worker_that_is_not_there_is_told_with_how_many_are(s: LocalScheduler) -> None:
    """An index beyond the replicas fails with their number."""
    with pytest.raises(IndexError, match=r"role 'few' has 2 worker\(s\), none at index 2"):
        s.start("few", replicas=2)[2]


def test_map_takes_tuples_and_no_strings(s: LocalScheduler) -> None:
    """Arguments for `map` that are no tuples are refused, with what is expected."""
    role = s.start("mapped", replicas=2)
    with pytest.raises(WorkerConfigurationError, match=r"no tuple: 'ab'; use map\('echo', \[\(1,\), "):
        role.map("echo", ["ab", "cd"])  # type: ignore[list-item]


def test_devices_on_a_machine_without_any(tmp_path: Path) -> None:
    """Asking for a device on a machine without one fails with that reason."""
    options: dict[str, Any] = {"experiment": "mistakes", "fileroot": tmp_path, "preload": [], "devices": []}
    with (
        LocalScheduler(trial="none", **options) as s,
        pytest.raises(GPUAllocationError, match="no devices were found on this host"),
    ):
        s.start("actor", gpu=1)


def test_options_of_tensors_and_ports_are_checked_where_they_are_given(s: LocalScheduler) -> None:
    """Bad option values fail when they are given, not when they are used."""
    role = s.start("options")
    with pytest.raises(WorkerConfigurationError, match="unknown tensor policy: 'remot'; use one of local, remote"):
        role.with_options(tensors="remot")  # type: ignore[arg-type]
    with pytest.raises(WorkerConfigurationError, match="bad port_count: 5000; use 1 to 4096"):
        SchedulingSpec(port_count=5000)


@pytest.mark.parametrize(
    "limit",
    [{"start_timeout": float("nan")}, {"start_timeout": None}, {"grace_s": -1}, {"lease_s": 0}, {"lease_s": "30"}],
)
def test_time_limits_with_which_nothing_would_ever_end_are_refused(limit: dict[str, Any], tmp_path: Path) -> None:
    """Before anything is made: with NaN for a limit a wait goes on for ever."""
    (name,) = limit
    with pytest.raises(WorkerConfigurationError, match=f"bad {name}.*seconds"):
        LocalScheduler(experiment="e", trial="t", fileroot=tmp_path, **limit)
    assert list(tmp_path.iterdir()) == []


def test_a_home_that_cannot_be_written_names_the_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even root can make a directory in /sys."""
    monkeypatch.setenv("HOME", "/sys")
    with pytest.raises(WorkerConfigurationError, match=r"cannot be written in /sys/.rolecall/e/t: .*; pass fileroot="):
        LocalScheduler(experiment="e", trial="t")
    (tmp_path / "e").touch()
    with pytest.raises(WorkerConfigurationError, match="pass fileroot="):
        LocalScheduler(experiment="e", fileroot=tmp_path)


def test_a_scheduler_after_its_block_says_so(tmp_path: Path) -> None:
    """Using a scheduler or role after the `with` block fails with that reason."""
    with LocalScheduler(experiment="mistakes", trial="ended", fileroot=tmp_path, preload=[]) as s:
        role = s.start("actor")
    for use in (lambda: s.start("late"), lambda: role.fork("late"), lambda: role.call("greet")):
        with pytest.raises(WorkerConfigurationError, match=r"the run mistakes/ended has ended; .* inside the `with`"):
            use()


def test_a_crash_in_native_code_leaves_the_python_stack_in_the_error(s: LocalScheduler) -> None:
    """A segmentation fault is reported with the Python stack in the log tail."""
    role = s.start("crash")
    role.create_engine("tests.support.crashing.Crashing")
    with pytest.raises(WorkerFailedError) as caught:
        role.call("crash")
    assert caught.value.signal == signal.SIGSEGV
    assert "Fatal Python error: Segmentation fault" in caught.value.log_tail
    assert "in crash" in caught.value.log_tail


def test_a_program_read_from_stdin_cannot_give_its_classes_to_workers(tmp_path: Path) -> None:
    """The error says that the class must be in a module."""
    program = f"""
import rolecall
class A: pass
with rolecall.LocalScheduler(experiment="mistakes", trial="stdin", fileroot={str(tmp_path)!r}, preload=[]) as s:
    s.start("actor").create_engine(A)
"""
    env = {**os.environ, "PYTHONPATH": str(SOURCES)}
    done = subprocess.run([sys.executable, "-"], input=program, env=env, capture_output=True, text=True, timeout=60)
    assert "a class of an interactive session cannot be imported on a worker; use a module" in done.stderr


def test_a_class_below_the_main_guard_is_told_to_be_above(tmp_path: Path) -> None:
    """Workers load the script without what stands there."""
    program = tmp_path / "program.py"
    program.write_text(f"""
import rolecall
if __name__ == "__main__":
    class A: pass
    with rolecall.LocalScheduler(experiment="mistakes", trial="below", fileroot={str(tmp_path)!r}, preload=[]) as s:
        s.start("actor").create_engine(A)
""")
    env = {**os.environ, "PYTHONPATH": str(SOURCES)}
    done = subprocess.run([sys.executable, program], env=env, capture_output=True, text=True, timeout=60)
    assert "has no 'A' where workers load it; define it above `if __name__ == '__main__':`" in done.stderr
