"""What other users, another umask and forked children can do to a run's directories: nothing."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from rolecall.errors import WorkerCreationError, WorkerFailedError
from tests.security.live_run import live_run
from tests.support.checkout import ROOT
from tests.support.waiting import wait_for

RUN = """
import os, sys, time
from rolecall import scheduler
os.umask(0)
fileroot, then = sys.argv[1:]
s = scheduler("local", experiment="e", trial="t", fileroot=fileroot)
s.start("actor", 1, cpu=0.1, mem=0.1)
if then == "fork":
    if (child := os.fork()) == 0:
        time.sleep(60)
        os._exit(0)
    print(child, flush=True)
    os._exit(1)
with s:
    print(s.run_dir, flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def short_tmp() -> Iterator[Path]:
    """A directory whose name leaves room for those of sockets."""
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="rct-") as path:
        yield Path(path)


def controller(fileroot: Path, then: str = "", **env: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", RUN, str(fileroot), then],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=os.environ | env,
    )


def first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_nobody_else_may_write_into_a_run(tmp_path: Path) -> None:
    """Whatever the umask, no directory and no file of a run can be written by others."""
    with controller(tmp_path / "made") as process:
        run_dir = Path(first_line(process))
        found = [tmp_path / "made", *(tmp_path / "made").rglob("*")]
        process.communicate("\n", timeout=60)
    found += [tmp_path / "made", *(tmp_path / "made").rglob("*")]
    assert {path.name for path in found} >= {"state.json", "logs", "stacks", "merged.log", run_dir.name}
    open_to_all = [str(path) for path in found if path.exists() and path.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH)]
    assert not open_to_all


def test_a_forked_child_of_the_controller_keeps_no_lock(tmp_path: Path) -> None:
    """A controller that has died leaves its trial to the next run, though a child of it lives."""
    with controller(tmp_path, "fork") as dead:
        child = int(first_line(dead))
        assert dead.wait(30) == 1
        try:
            with controller(tmp_path) as process:
                assert first_line(process).startswith(str(tmp_path / "e" / "t"))
                process.communicate("\n", timeout=60)
            os.kill(child, 0)  # it lived all the time
        finally:
            os.kill(child, signal.SIGKILL)
    wait_for(lambda: not Path(f"/proc/{child}").exists(), 10, "end of the child")


@pytest.mark.parametrize("taken", ["file", "directory of another user"])
def test_what_another_user_has_put_in_the_way_is_passed_by(tmp_path: Path, short_tmp: Path, taken: str) -> None:
    """The directory for sockets and tokens is another one then, and the command line finds it."""
    place = short_tmp / f"rolecall-{os.getuid()}"
    if taken == "file":
        place.touch()
    elif os.getuid() == 0:
        place.mkdir()
        os.chown(place, 12345, 12345)
    else:
        place.symlink_to("/")  # it belongs to another user just as well
    with controller(tmp_path / "files", TMPDIR=str(short_tmp)) as process:
        first_line(process)
        assert (short_tmp / f"rolecall-{os.getuid()}-1").is_dir()
        seen = subprocess.run(
            [sys.executable, "-m", "rolecall.cli", "ps", "--fileroot", str(tmp_path / "files")],
            capture_output=True,
            text=True,
            env=os.environ | {"TMPDIR": str(short_tmp)},
            timeout=60,
        )
        process.communicate("\n", timeout=60)
    assert "actor/0" in seen.stdout, seen


def test_a_fifo_in_place_of_a_guards_log_is_told(tmp_path: Path) -> None:
    """A start on the next guard is not waited for without end, whichever of its logs a worker has replaced."""
    with live_run(tmp_path) as run:
        logs = run.run_dir / "logs"
        merged = logs / "merged.log"
        merged.unlink()
        for log in (logs / "guard-g1.log", merged):
            os.mkfifo(log)
        (guard,) = (p for p in run.processes() if p.name() == "rc:guard")
        guard.kill()
        with pytest.raises(WorkerFailedError):
            run.actor.call("sleep", 60.0)
        for log in (logs / "guard-g1.log", merged):
            with pytest.raises(WorkerCreationError, match="No such device or address"):
                run.scheduler.start("again", cpu=1)
            log.unlink()
        run.scheduler.start("again", cpu=1)
