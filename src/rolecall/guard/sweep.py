"""Finds and kills what is left of a run by the run's id in its environment. The last line of defence, kept by nobody.

Every process below a guard bears `ROLECALL_RUN`, `ROLECALL_GUARD` and `ROLECALL_WORKER`; whoever escaped the tree (its
guard and reaper were both killed) still shows them in `/proc/<pid>/environ`.
"""

import os
import signal
import time
from typing import NamedTuple

from rolecall.guard.proc import Process, alive, ancestors, environ, send, snapshot
from rolecall.protocol.environment import GUARD, RUN, WORKER

_POLL_S = 0.01


class Killed(NamedTuple):
    """A process that the sweep found. `gone` is False when it was still there at the end."""

    pid: int
    start: int
    name: str
    worker: str
    gone: bool


def find(run_id: str, guard_id: str | None = None) -> list[Killed]:
    """The living processes of a run, or of one guard of it; never this process or one above it."""
    table = snapshot()
    spared = ancestors(os.getpid(), table)
    found = []
    for stat in table.values():
        if stat.dead or stat.pid in spared:
            continue
        env = environ(stat.pid)
        if env.get(RUN) == run_id and (guard_id is None or env.get(GUARD) == guard_id):
            found.append(Killed(stat.pid, stat.start, stat.name, env.get(WORKER, "").strip(" "), False))
    return found


def sweep(run_id: str, guard_id: str | None = None, *, timeout: float = 5.0) -> list[Killed]:
    """SIGKILLs what is left of a run and waits until it is seen dead.

    Args:
        run_id: The run.
        guard_id: Only what was started below this guard.
        timeout: Seconds to go on; a process in the kernel's uninterruptible sleep may outlast it.

    Returns:
        Everything that was found, each with whether it is gone.
    """
    seen: dict[Process, Killed] = {}
    deadline = time.monotonic() + timeout
    while True:
        found = find(run_id, guard_id)  # again each time: what is being killed may have forked
        for item in found:
            process = Process(item.pid, item.start)
            seen[process] = item
            send(process, signal.SIGKILL)
        if not found or time.monotonic() > deadline:
            return [item._replace(gone=not alive(process)) for process, item in seen.items()]
        time.sleep(_POLL_S)
