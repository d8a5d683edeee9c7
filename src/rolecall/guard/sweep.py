"""Finds and kills what is left of a run. It needs no guard and no controller.

Every descendant of a guard has `ROLECALL_RUN`, `ROLECALL_GUARD` and `ROLECALL_WORKER` in `/proc/<pid>/environ`,
also when it has left the process tree because both guard and reaper were killed. One that was given another environment
is found below such a process, in the guard's cgroup, or because the guard has noted it.
"""

import os
import shutil
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from rolecall.guard import cgroup
from rolecall.guard.claims import CGROUP, CLAIMS, abandoned, found_in, of_guards, seen
from rolecall.guard.proc import (
    TICKS,
    Process,
    Stat,
    alive,
    ancestors,
    descendants_of,
    environ,
    of_another_user,
    send,
    snapshot,
)
from rolecall.protocol.environment import GUARD, RUN, WORKER

REAPER_NAME = "rc:reaper"  # as the processes name themselves
SECOND_LOOK_S = 0.2
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


def run_processes(
    run_id: str | None = None, guard_id: str | None = None, runtime_dir: str | Path | None = None
) -> list[RunProcess]:
    """The running processes of a run, of all runs, or of a guard, without this process and its ancestors.

    Args:
        runtime_dir: The run's; then what does not bear its id is found as well.
    """
    stats = snapshot()
    spared = ancestors(os.getpid(), stats)
    found: dict[int, RunProcess] = {}
    for pid, stat in stats.items():
        env = environ(pid)
        run, guard = env.get(RUN, ""), env.get(GUARD, "")
        if run and run_id in (None, run) and guard_id in (None, guard):
            _add(found, stat, run, guard, env.get(WORKER, "").strip("\0 "))
    if runtime_dir is not None:
        known = {process.pid for process in seen(runtime_dir, guard_id) if _is(stats.get(process.pid), process)}
        known |= set().union(found.keys() - spared, *map(cgroup.pids, cgroups(runtime_dir, guard_id)))
        for pid in (known | descendants_of(known, stats)) & stats.keys() - found.keys():
            _add(found, stats[pid], run_id or "", guard_id or "", "")
    return [item for pid, item in found.items() if pid not in spared]


def _add(found: dict[int, RunProcess], stat: Stat, run: str, guard: str, worker: str) -> None:
    with suppress(OSError):  # it has ended
        if not stat.dead:
            found[stat.pid] = RunProcess(stat, run, guard, worker, Path(f"/proc/{stat.pid}").stat().st_uid)


def _is(stat: Stat | None, process: Process) -> bool:
    return stat is not None and stat.process == process


def sweep(
    run_id: str, guard_id: str | None = None, runtime_dir: str | Path | None = None, *, timeout: float = 5.0
) -> list[Killed]:
    """Sends SIGKILL to the remaining processes of a run and waits until they have ended; removes its cgroups.

    Args:
        run_id: The run.
        guard_id: Only what was started below this guard.
        runtime_dir: The run's, as in `run_processes`.
        timeout: Seconds to wait; a process in the kernel's uninterruptible sleep may outlast it.

    Returns:
        All processes that were found, each with whether it has ended.
    """
    seen: dict[Process, RunProcess] = {}
    deadline = time.monotonic() + timeout
    while True:
        found = run_processes(run_id, guard_id, runtime_dir)  # again each time, since the processes may have forked
        for item in found:
            seen[item.process] = item
            send(item.process, signal.SIGKILL)
        if all(of_another_user(item.process) for item in found) or time.monotonic() > deadline:
            break
        time.sleep(_POLL_S)
    if runtime_dir is not None:
        end_cgroups(runtime_dir, guard_id, timeout)
    return [Killed(*process, item.stat.name, item.worker, not alive(process)) for process, item in seen.items()]


def cgroups(runtime_dir: str | Path, guard_id: str | None = None) -> list[str]:
    """Those of guards on this host, without one that this process is in."""
    found = [path for path in of_guards(runtime_dir, guard_id, CGROUP) if os.getpid() not in cgroup.pids(path)]
    return [path for path in found if Path(path).is_dir()]


def end_cgroups(runtime_dir: str | Path, guard_id: str | None = None, timeout: float = 5.0) -> None:
    """Kills what is in them, however fast it forks, and removes them."""
    for path in cgroups(runtime_dir, guard_id):
        cgroup.end(path, timeout)


def _abandoned_for_good(folder: Path) -> bool:
    """As `abandoned`, twice: the first look may have met a run that was just being made or ended."""
    if not abandoned(folder):
        return False
    time.sleep(SECOND_LOOK_S)
    return abandoned(folder)


def clean_abandoned(root: Path) -> dict[str, list[Killed]]:
    """Ends and removes what runs have left whose controller and guards on this host were all killed.

    Of other runs, what a guard has left that was killed with its reaper.

    Args:
        root: Where the runtime directories of this user are.

    Returns:
        For each run of the first kind what was killed.
    """
    cleaned = {}
    for folder in root.iterdir():
        if not folder.is_symlink() and _abandoned_for_good(folder):
            cleaned[folder.name] = sweep(folder.name, runtime_dir=folder)
            shutil.rmtree(folder, ignore_errors=True)
        for part in [file.parent for file in found_in(folder, f"*/{CLAIMS}")]:
            if _abandoned_for_good(part):
                sweep(folder.name, part.name, folder)
                shutil.rmtree(part, ignore_errors=True)
    return cleaned
