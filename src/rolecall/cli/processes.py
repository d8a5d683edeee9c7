"""The living processes that bear a run's mark in their environment, by what they do in it. It only looks."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from rolecall.guard.proc import TICKS, Process, Stat, ancestors, environ, snapshot
from rolecall.protocol.environment import GUARD, RUN, WORKER

REAPER_NAME = "rc:reaper"  # what these name themselves, see the guard's `set_name`
GUARD_NAME = "rc:guard"


@dataclass(frozen=True)
class RunProcess:
    """A process of a run. `worker` is empty for the run's guards, reapers and templates."""

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
    """The processes of one run, or of all; never this process or one above it."""
    table = snapshot()
    spared = ancestors(os.getpid(), table)
    seen = (_look(stat) for stat in table.values() if not stat.dead and stat.pid not in spared)
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


@dataclass(frozen=True)
class Usage:
    """What the processes of one worker use together. `cpu_s` is of the living ones since they began."""

    cpu_s: float
    rss_bytes: int
    processes: int


def usage(items: Iterable[RunProcess]) -> Usage:
    """Sums up processes."""
    stats = [item.stat for item in items]
    return Usage(sum(s.cpu for s in stats) / TICKS, sum(s.rss for s in stats), len(stats))
