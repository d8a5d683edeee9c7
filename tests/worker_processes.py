"""Finding the processes of a run from outside, by the run's id in their environment."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


def processes(run_id: str, *marks: str) -> dict[int, str]:
    """Living processes of a run (with further `marks` in their environment): pid to command line."""
    wanted = {m.encode() for m in (f"ROLECALL_RUN={run_id}", *marks)}
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


def template(run_id: str) -> int | None:
    """The template process, if there is one now."""
    return next((pid for pid in processes(run_id) if _name(pid) == "rc:template"), None)


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def wait_for(look: Callable[[], T], within: float, what: str) -> T:
    """The first true value of `look`; fails with what was last seen when the time is over."""
    deadline = time.monotonic() + within
    while not (seen := look()):
        assert time.monotonic() < deadline, f"no {what} within {within} s (last seen: {seen!r})"
        time.sleep(0.005)  # polls /proc, which tells of no changes
    return seen


def wait_until_gone(run_id: str, within: float) -> float:
    """Seconds until nothing of the run lives."""
    begun = time.monotonic()
    left = processes(run_id)
    while left:
        assert time.monotonic() - begun < within, f"alive after {within} s: {left}"
        time.sleep(0.005)
        left = processes(run_id)
    return time.monotonic() - begun


def send(pid: int, number: signal.Signals) -> None:
    os.kill(pid, number)
