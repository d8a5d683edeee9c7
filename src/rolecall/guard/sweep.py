"""Finds and kills remaining processes of a run by the run id in their environment. It needs no guard and no controller.

Every descendant of a guard has `ROLECALL_RUN`, `ROLECALL_GUARD` and `ROLECALL_WORKER` in `/proc/<pid>/environ`,
also when it has left the process tree because both guard and reaper were killed.
"""

import os
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from rolecall.guard.proc import TICKS, Process, Stat, alive, ancestors, environ, send, snapshot
from rolecall.protocol.environment import GUARD, RUN, WORKER

REAPER_NAME = "rc:reaper"  # as the processes name themselves
GUARD_NAME = "rc:guard"
_POLL_S = 0.01


class RunProcess(NamedTuple):
    """A process of a run. `worker` is empty for guards, reapers and templates."""

    stat: Stat
    run_id: str
    guard_id: str
    worker: str
    uid: int

    @property
    def process(self) -> Process:
        return self.stat.process

    @property
    def uptime_s(self) -> float:
        return time.clock_gettime(time.CLOCK_BOOTTIME) - self.stat.start / TICKS

    def describe(self) -> str:
        """`1234 python (actor/0)`."""
        return f"{self.stat.pid} {self.stat.name}" + (f" ({self.worker})" if self.worker else "")


class Killed(NamedTuple):
    """A process that the sweep killed. `gone` is False if it had not ended at the end of the sweep."""

    pid: int
    start: int
    name: str
    worker: str
    gone: bool


def run_processes(run_id: str | None = None, guard_id: str | None = None) -> list[RunProcess]:
    """The running processes of a run, of all runs, or of a guard, without this process and its ancestors."""
    stats = snapshot()
    spared = ancestors(os.getpid(), stats)
    found = []
    for stat in stats.values():
        if stat.dead or stat.pid in spared:
            continue
        env = environ(stat.pid)
        run, guard = env.get(RUN, ""), env.get(GUARD, "")
        if run and run_id in (None, run) and guard_id in (None, guard):
            with suppress(OSError):  # it has ended
                uid = Path(f"/proc/{stat.pid}").stat().st_uid
                found.append(RunProcess(stat, run, guard, env.get(WORKER, "").strip("\0 "), uid))
    return found


def sweep(run_id: str, guard_id: str | None = None, *, timeout: float = 5.0) -> list[Killed]:
    """Sends SIGKILL to the remaining processes of a run and waits until they have ended.

    Args:
        run_id: The run.
        guard_id: Only what was started below this guard.
        timeout: Seconds to wait; a process in the kernel's uninterruptible sleep may outlast it.

    Returns:
        All processes that were found, each with whether it has ended.
    """
    seen: dict[Process, RunProcess] = {}
    deadline = time.monotonic() + timeout
    while True:
        found = run_processes(run_id, guard_id)  # again each time, since the processes may have forked
        for item in found:
            seen[item.process] = item
            send(item.process, signal.SIGKILL)
        if not found or time.monotonic() > deadline:
            return [Killed(*process, item.stat.name, item.worker, not alive(process)) for process, item in seen.items()]
        time.sleep(_POLL_S)
