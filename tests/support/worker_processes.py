"""Finding the processes of a run from outside, by the run's id in their environment."""

from __future__ import annotations

import os
import select
import signal
import time
from pathlib import Path

import psutil

from tests.support.waiting import poll


def processes(run_id: str, *marks: str) -> dict[int, str]:
    """Living processes of a run (with further `marks` in their environment): pid to command line."""
    return _bearing(f"ROLECALL_RUN={run_id}", *marks)


def hidden(run_id: str) -> dict[int, str]:
    """Those that an engine has started without the run's marks."""
    return _bearing(f"HIDDEN={run_id}")


def _bearing(*marks: str) -> dict[int, str]:
    wanted = {m.encode() for m in marks}
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            if not wanted <= set((entry / "environ").read_bytes().split(b"\0")):
                continue
            if (entry / "stat").read_text().rpartition(")")[2].split()[0] != "Z":
                found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue  # it ended while we looked
    return found


def of_worker(run_id: str, worker_id: str) -> list[int]:
    """Living processes whose environment names this worker."""
    return list(processes(run_id, f"ROLECALL_WORKER={worker_id}"))


def guard_of(run_id: str, worker_id: str) -> psutil.Process:
    """The guard that owns a worker, found from below."""
    above = psutil.Process(of_worker(run_id, worker_id)[0]).parents()
    return next(process for process in above if process.name() == "rc:guard")


def guard_id(run_id: str, worker_id: str) -> str:
    """What that guard is called, by the worker's environment."""
    return str(psutil.Process(of_worker(run_id, worker_id)[0]).environ()["ROLECALL_GUARD"])


def reaper_of(run_id: str, worker_id: str) -> psutil.Process:
    """The parent of that guard."""
    return guard_of(run_id, worker_id).parent()


def kill_at_once(pids: list[int]) -> None:
    """SIGKILL to all of them, none of which can act on the death of another."""
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for pid in pids:
            os.kill(pid, number)


def templates(run_id: str) -> set[int]:
    """The template processes that there are now, one for each guard."""
    return {pid for pid in processes(run_id) if _name(pid) == "rc:template"}


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def tree(top: psutil.Process) -> list[psutil.Process]:
    """A process and all below it."""
    return [top, *top.children(recursive=True)]


def living(among: list[psutil.Process]) -> list[psutil.Process]:
    return [process for process in among if _lives(process)]


def _lives(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def wait_until_gone(run_id: str, within: float, *marks: str) -> float:
    """Seconds until nothing of the run (with these marks) lives."""
    begun = time.monotonic()
    if not poll(lambda: not processes(run_id, *marks), within):
        assert not (left := processes(run_id, *marks)), f"alive after {within} s: {left}"
    return time.monotonic() - begun


def send(pid: int, number: signal.Signals) -> None:
    os.kill(pid, number)


def kill(pid: int, number: signal.Signals) -> float:
    """Sends a signal that ends the process; returns when it ended, which takes it a while where it handles it."""
    handle = os.pidfd_open(pid)
    try:
        send(pid, number)
        assert select.select([handle], [], [], 10.0)[0], f"{number.name} did not end process {pid}"
    finally:
        os.close(handle)
    return time.monotonic()
