"""Finds and kills remaining processes of a run by the run id in their environment. It needs no guard and no controller.

Every descendant of a guard has `ROLECALL_RUN`, `ROLECALL_GUARD` and `ROLECALL_WORKER` in `/proc/<pid>/environ`,
also when it has left the process tree because both guard and reaper were killed.
"""

import os
from functools import partial

from rolecall.guard.proc import Stat, ancestors, environ, kill_found, snapshot
from rolecall.protocol.environment import GUARD, RUN


def find(run_id: str, guard_id: str | None = None) -> list[Stat]:
    """The running processes of a run, or of one of its guards, without this process and its ancestors."""
    stats = snapshot()
    spared = ancestors(os.getpid(), stats)
    mine = {RUN: run_id} if guard_id is None else {RUN: run_id, GUARD: guard_id}
    others = (stat for stat in stats.values() if not stat.dead and stat.pid not in spared)
    return [stat for stat in others if mine.items() <= environ(stat.pid).items()]


def sweep(run_id: str, guard_id: str | None = None, *, timeout: float = 5.0) -> list[Stat]:
    """Sends SIGKILL to the remaining processes of a run, or of one of its guards, and waits until they have ended.

    Args:
        timeout: Seconds to wait; a process in the kernel's uninterruptible sleep may outlast it.

    Returns:
        All processes that were found.
    """
    return kill_found(partial(find, run_id, guard_id), timeout)
