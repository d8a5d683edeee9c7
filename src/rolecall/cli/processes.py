"""Running processes of a run, recognized by the run id in their environment. This module only reads /proc."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

from rolecall.guard.proc import TICKS, Process, Stat, ancestors, environ, snapshot
from rolecall.protocol.environment import GUARD, RUN, WORKER

REAPER_NAME = "rc:reaper"  # as the processes name themselves, see the guard's `set_name`
GUARD_NAME = "rc:guard"


@dataclass(frozen=True)
class RunProcess:
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


def run_processes(run_id: str | None = None) -> list[RunProcess]:
    """The processes of one run, or of all runs, without this process and its ancestors."""
    table = snapshot()
    own = ancestors(os.getpid(), table)
    seen = (_look(stat) for stat in table.values() if not stat.dead and stat.pid not in own)
    return [item for item in seen if item is not None and run_id in (None, item.run_id)]


def _look(stat: Stat) -> RunProcess | None:
    env = environ(stat.pid)
    if not env.get(RUN):
        return None
    try:
        uid = Path(f"/proc/{stat.pid}").stat().st_uid
    except OSError:
        return None
    return RunProcess(stat, env[RUN], env.get(GUARD, ""), env.get(WORKER, "").strip("\0 "), uid)
