"""The processes that a peer leaves behind: none may be.

The benchmark makes itself the reaper of all below it, so an orphan, a daemon too, becomes its child and is seen.
"""

from __future__ import annotations

import ctypes
import os
import time
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

import psutil

PR_SET_CHILD_SUBREAPER = 36
PATIENCE_S = 10.0


@dataclass(frozen=True)
class Leftovers:
    """What was still there after a peer had closed and its process had ended."""

    gone_after_s: float | None  # None: never by itself
    killed: list[str]  # names of the processes that had to be killed

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def adopt_orphans() -> None:
    """From now on every orphaned descendant becomes a child of this process."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "cannot become a subreaper")


def end_of_family() -> Leftovers:
    """Wait for all descendants to go; kill and name those that do not."""
    begun = time.monotonic()
    while left := living():
        if time.monotonic() - begun > PATIENCE_S:
            return Leftovers(None, put_down(left))
        time.sleep(0.02)
    return Leftovers(time.monotonic() - begun, [])


def living() -> list[psutil.Process]:
    bury()
    found: list[psutil.Process] = psutil.Process().children(recursive=True)
    return found


def bury() -> None:
    """Collect the orphans that have ended; called only when no child of our own is waited for."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def put_down(left: list[psutil.Process]) -> list[str]:
    names = Counter(process.name() for process in left if process.is_running())
    while left := living():
        for process in left:
            process.kill()
        time.sleep(0.02)
    return [f"{name} ({count})" for name, count in sorted(names.items())]
