"""A controller and an engine that use up what the system has, or whose clock is set; a program for the tests here.

Each function is a story, with checks of its own: a failed one is the program's exit status.
"""

from __future__ import annotations

import errno
import json
import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from signal import SIGKILL

import numpy as np
import psutil

from rolecall import Role, Scheduler, scheduler
from rolecall.errors import (
    EngineCallError,
    RolecallError,
    WorkerConfigurationError,
    WorkerCreationError,
    WorkerFailedError,
    WorkerTimeoutError,
)
from tests.support.live import metrics
from tests.support.waiting import wait_for
from tests.support.worker_processes import guard_of

SLEEPER = ["sleep", "100"]
LINES = 300
ELEMENTS = 1 << 16
MARGIN = 6 << 20  # bytes: less than the stack of a thread


def fill(folder: Path) -> Path:
    """Writes a file until nothing more can be written into its file system."""
    path = folder / "ballast"
    with path.open("wb", buffering=0) as file:
        for size in (1 << 16, 1):
            try:
                while file.write(bytes(size)):
                    pass
            except OSError as e:
                assert e.errno == errno.ENOSPC
    return path


def limit_memory(pid: int, margin: int = MARGIN) -> None:
    """Leaves a process less than a further thread needs, unless it has the stacks of ended ones."""
    process = psutil.Process(pid)
    process.rlimit(resource.RLIMIT_AS, (process.memory_info().vms + margin, resource.RLIM_INFINITY))  # type: ignore[no-untyped-call]


def limit_own_memory(over: threading.Event) -> None:
    limit_memory(os.getpid(), 10 * MARGIN)
    use_up_threads(over)
    limit_memory(os.getpid())


class Hungry:
    def __init__(self) -> None:
        self.over = threading.Event()

    def pid(self) -> int:
        return os.getpid()

    def talk(self, number: int) -> None:
        for line in range(LINES):
            print(f"{number}.{line} " + "-" * 200)

    def limit_memory(self) -> None:
        limit_own_memory(self.over)

    def use_up_threads(self) -> None:
        use_up_threads(self.over)

    def become(self, uid: int) -> int:
        os.setresuid(uid, uid, uid)
        return os.getuid()

    def start_sleeper(self) -> int:
        return subprocess.Popen(SLEEPER, start_new_session=True).pid

    def total(self, array: np.ndarray[tuple[int], np.dtype[np.float64]]) -> float:
        return float(array.sum())

    def now(self) -> float:
        return time.time()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    def stream(self) -> Iterator[int]:
        yield 1

    async def zeros(self) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        return np.zeros(ELEMENTS)


def use_up_threads(over: threading.Event) -> None:
    try:
        while True:
            threading.Thread(target=over.wait, daemon=True).start()
    except RuntimeError:
        return


def begin(fileroot: str | None) -> Scheduler:
    return scheduler("local", experiment="e", fileroot=fileroot, preload=[], grace_s=0.5)


def refused(what: Callable[[], object], kind: type[RolecallError], *told: str) -> None:
    """Says what an error says, so that a failed test shows it."""
    try:
        value = what()
    except kind as e:
        print(f"{kind.__name__}: {e}", flush=True)
        assert all(words in str(e) for words in told), told
    else:
        raise AssertionError(f"{kind.__name__} was not raised, but {value!r} returned")


def full_disks(fileroot: str, tmp: str) -> None:
    """Neither a full run directory nor a full temporary one ends what runs, and both are told. HOME is read-only."""
    refused(lambda: begin(None), WorkerConfigurationError, "Read-only file system", "fileroot=")
    ballast = fill(Path(fileroot))
    refused(lambda: begin(fileroot), WorkerConfigurationError, "No space left", fileroot, "make room")
    ballast.unlink()
    with begin(fileroot) as s:
        role = s.start("actor", 2)
        role.create_engine(Hungry)
        run_directory_full(s, role, Path(fileroot))
        assert role.with_options(tensors="remote").call("zeros")[1].shape == (ELEMENTS,)  # without /dev/shm
        ballast = fill(Path(tmp))
        room = ("No space left", "make room")
        refused(lambda: role.fork("ref"), WorkerCreationError, *room, ".progress")
        refused(lambda: s.start("program", cmd=SLEEPER), WorkerCreationError, *room, ".progress")
        assert len(set(role.call("pid"))) == 2
        os.kill(guard_of(s.run_id, "actor/0").pid, SIGKILL)
        s.delete_workers("actor")
        wait_for(lambda: not Path(s.inspect().runtime_dir, "g0").exists(), 10, "end of the guard's files")
        fill(Path(tmp))
        refused(lambda: s.start("actor", 1), WorkerCreationError, "the guard was not started", *room)
        ballast.unlink()
        assert len(s.start("actor", 1)) == 1
    ballast = fill(Path(tmp))
    refused(lambda: begin(fileroot), WorkerConfigurationError, "No space left", tmp, "make room")
    ballast.unlink()


def run_directory_full(s: Scheduler, role: Role, fileroot: Path) -> None:
    """Calls go on, what an engine prints raises there, and the merged log is complete when there is room again."""
    role[0].call("talk", 0)
    ballast = fill(fileroot)
    refused(lambda: role[0].call("talk", 1), EngineCallError, "No space left", "print")
    assert len(role.fork("ref")) == 2
    s.delete_workers("ref")
    ballast.unlink()
    role[0].call("talk", 2)
    logs = Path(s.run_dir, "logs")
    own = [f"[actor/0] {line}" for line in (logs / "actor-0.log").read_text().splitlines()]
    assert f"[actor/0] 2.{LINES - 1} " + "-" * 200 in own

    def complete() -> bool:
        return own == [line for line in (logs / "merged.log").read_text().splitlines() if "[actor/0]" in line]

    wait_for(complete, 10, "merged log with all lines, each once and whole")


def no_threads(fileroot: str, limited: str) -> None:
    """Where none can be started, what needs one says so, and all that must end does."""
    with begin(fileroot) as s:
        role = s.start("actor", 1)
        role.create_engine(Hungry)
        over = threading.Event()
        match limited:
            case "controller's memory":
                limit_own_memory(over)
            case "guard's memory":
                limit_memory(guard_of(s.run_id, "actor/0").pid)
            case "worker's memory":
                role.call("limit_memory")
            case "processes of the controller":
                use_up_threads(over)
            case "processes of the worker":
                role.call("use_up_threads")
        role = role.with_options(timeout=20)
        assert role.call("pid")
        assert role.with_options(tensors="remote").call("zeros")[0].shape == (ELEMENTS,)
        told = ("[Errno 11]", "`ulimit -u`", "`ulimit -v`")
        if "processes" in limited:
            refused(lambda: role.fork("ref"), WorkerCreationError, *told)
            refused(lambda: s.start("program", cmd=SLEEPER), WorkerCreationError, *told)
        elif limited != "guard's memory":  # it would need memory for what it starts
            assert len(role.fork("ref")) == len(s.start("program", cmd=SLEEPER)) == 1
        if "worker" in limited or "processes" in limited:
            refused(lambda: list(role[0].stream("stream")), WorkerConfigurationError, *told)
            refused(lambda: role.with_options(engine="two").create_engine(Hungry), WorkerConfigurationError, *told)
        if "controller" in limited:
            refused(lambda: begin(fileroot), WorkerConfigurationError, "the run was not started", *told)
        s.delete_workers("actor")
        over.set()


def user_is_changed(fileroot: str, uid: str, signals: str) -> None:
    """Workers that have become another user work on. They are ended if this user may, else named, and soon."""
    with begin(fileroot) as s:
        role = s.start("actor", 2)
        role.create_engine(Hungry)
        assert role[0].call("become", int(uid)) == int(uid) != role[1].call("become", -1)
        child = role[0].call("start_sleeper")
        whole = role.with_options(tensors="remote").call("zeros")
        assert role[0].call("total", whole[1]) == role[1].call("total", whole[0]) == 0.0
        assert len(role.fork("ref")) == 2
        worker = s.inspect().worker("actor/0").pid
        s.delete_workers("actor")
        wait_for(lambda: not psutil.pid_exists(worker), 5, "end of the worker, by itself where nobody may signal it")
        assert psutil.pid_exists(child) == (signals == "refused")
        print(child)


def user_has_no_name(fileroot: str) -> None:
    """Nor a home, nor a further process: the command line says what it needs, shows the run, and stops it."""
    with begin(fileroot) as s:
        role = s.start("actor", 1)
        command = [sys.executable, "-m", "rolecall.cli"]
        listed = subprocess.run([*command, "ps"], capture_output=True, text=True)
        assert len(listed.stderr.splitlines()) == 1 and "pass --fileroot" in listed.stderr, listed
        for words in (["top", "--once"], ["stop", "--yes"]):
            limited = ["prlimit", "--nproc=1", *command, *words, "--run", s.run_dir, "--fileroot", fileroot]
            subprocess.run(limited, check=True)
        refused(lambda: role.call("pid"), WorkerFailedError, "`rolecall stop`, process", f"of uid {os.getuid()} on")


def clock_is_set(fileroot: str, shift: str) -> None:
    """The wall clock jumps by hours, in all processes, while calls, a program and the guard's watches go on."""
    base = time.time() - time.monotonic()
    with begin(fileroot) as s:
        role = s.start("actor", 2)
        role.create_engine(Hungry)
        s.start("program", cmd=["python", "-m", "http.server", "{port}", "--bind", "{host}"], ready="/")
        for hours in (10, -10):
            patient = role[0].with_options(timeout=60).submit("sleep", 2.5)
            hurried = role[1].with_options(timeout=0.5).submit("sleep", 1.0)
            Path(shift).write_text(str(hours * 3600))
            refused(hurried.result, WorkerTimeoutError, "0.5 s")
            patient.result()  # meanwhile guard and controller have looked after it several times
            seen = role[0].call("now") - time.monotonic() - base
            assert abs(seen / 3600 - hours) < 0.1, "the engine's clock was not set"
            assert 0 < metrics(s, "w/actor-0.sock")["uptime_s"] < 100
            assert len(role.fork("ref")) == 2
            s.delete_workers("ref")
            role[1].restart()
        events = Path(s.run_dir, "events.jsonl")
        happened = [json.loads(line)["event"] for line in events.read_text().splitlines()] if events.exists() else []
        print(happened)
        assert not {"stalled", "guard_stalled", "guard_lost"} & set(happened)


if __name__ == "__main__":
    stories: dict[str, Callable[..., None]] = {
        story.__name__: story for story in (full_disks, no_threads, clock_is_set, user_is_changed, user_has_no_name)
    }
    stories[sys.argv[1]](*sys.argv[2:])
