"""Finds and kills remaining processes of a run by the run id in their environment. It needs no guard and no controller.

Every descendant of a guard has `ROLECALL_RUN`, `ROLECALL_GUARD` and `ROLECALL_WORKER` in `/proc/<pid>/environ`,
also when it has left the process tree because both guard and reaper were killed.
"""

import os
import signal
import time
from typing import NamedTuple

from rolecall.guard.proc import Process, alive, ancestors, environ, send, snapshot
from rolecall.protocol.environment import GUARD, RUN, WORKER

_POLL_S = 0.01


class Killed(NamedTuple):
    """A process that the sweep found. `gone` is False if it had not ended at the end of the sweep."""

    pid: int
    start: int
    name: str
    worker: str
    gone: bool


def find(run_id: str, guard_id: str | None = None) -> list[Killed]:
    """The running processes of a run, or of one of its guards, without this process and its ancestors."""
    stats = snapshot()
    spared = ancestors(os.getpid(), stats)
    found = []
    for stat in stats.values():
        if stat.dead or stat.pid in spared:
            continue
        env = environ(stat.pid)
        if env.get(RUN) == run_id and (guard_id is None or env.get(GUARD) == guard_id):
            found.append(Killed(stat.pid, stat.start, stat.name, env.get(WORKER, "").strip(" "), False))
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
    seen: dict[Process, Killed] = {}
    deadline = time.monotonic() + timeout
    while True:
        found = find(run_id, guard_id)  # again each time, since the processes may have forked
        for item in found:
            process = Process(item.pid, item.start)
            seen[process] = item
            send(process, signal.SIGKILL)
        if not found or time.monotonic() > deadline:
            return [item._replace(gone=not alive(process)) for process, item in seen.items()]
        time.sleep(_POLL_S)
