"""What guards and workers find as the controller does: its modules and its current folder. Waiting for a guard."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from rolecall.errors import GuardLostError, WorkerConfigurationError, WorkerTimeoutError
from rolecall.placement.base import ExpectedGuard

LOOK_S = 0.05
TAIL = 2000


def python_path() -> list[str]:
    """Where the controller finds modules; `""` (the current folder) by name, since workers must find the same."""
    return list(dict.fromkeys(p or current_folder() for p in sys.path))


def current_folder() -> str:
    """The folder that workers start in.

    Raises:
        WorkerConfigurationError: It was deleted.
    """
    try:
        return str(Path.cwd())
    except FileNotFoundError as e:
        what = "the current folder was deleted"
        raise WorkerConfigurationError(what, None, "change to one that is there; workers start in it too") from e


def connected(guard: ExpectedGuard, process: subprocess.Popen[bytes], timeout: float, log: Path | None = None) -> str:
    """Waits until a guard whose process (or reaper) is a child of this one has connected; returns its id.

    Args:
        log: What the process prints.

    Raises:
        GuardLostError: It has ended, with its status and the end of its log.
        WorkerTimeoutError: It has not connected in time.
    """
    deadline = time.monotonic() + timeout
    while not guard.wait(LOOK_S):
        guard.check()
        if process.poll() is not None:
            tail = "\n" + log.read_text(errors="replace")[-TAIL:] if log is not None else ""
            reason = f"it ended with status {process.returncode} before it had connected{tail}"
            raise GuardLostError(guard.guard_id, reason=reason)
        if time.monotonic() > deadline:
            raise WorkerTimeoutError(f"guard {guard.guard_id}", timeout, "connection", f"see {log}" if log else "")
    return guard.guard_id
