"""Ending workers: their engines' `destroy()` together, then their processes, seen dead."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress

from rolecall.errors import RolecallError
from rolecall.placement.waiting import Waiting
from rolecall.protocol.worker_methods import DESTROY, Destroy
from rolecall.scheduler.guards import kill
from rolecall.scheduler.run_options import Ending
from rolecall.scheduler.table import Member
from rolecall.transport.peer import Call

log = logging.getLogger("rolecall")
MARGIN_S = 1.0
KILL_MARGIN_S = 20.0


def destroy_engines(members: Sequence[Member], seconds: float, borrowed_by: str | None = None) -> None:
    """Asks all members at the same time, since ending a process group is a collective; bounded.

    Args:
        seconds: For each engine; with 0 none is asked.
        borrowed_by: The role whose engines alone are meant, as the workers are another's.
    """
    calls: list[tuple[Member, Call]] = []
    for i, member in enumerate(members if seconds else ()):
        engines = [f"{borrowed_by}/{i}"] if borrowed_by is not None else None
        with suppress(RolecallError):  # it died meanwhile
            if member.client is not None:
                wanted, limit = Destroy(engines=engines, timeout=seconds), seconds + MARGIN_S
                calls.append((member, member.client.peer.request(DESTROY.name, wanted, timeout=limit)))
    for member, call in calls:
        try:
            log_problems(member.id, call.result())
        except (RolecallError, TimeoutError) as e:
            log.warning("%s: destroy() of its engines was not called: %s", member.id, e)


def log_problems(worker_id: str, problems: Mapping[str, str]) -> None:
    """Logs what `destroy()` of engines ended with, by engine."""
    for engine, problem in problems.items():
        log.warning("%s: engine %s: %s", worker_id, engine, problem)


def end_processes(members: Sequence[Member], how: Ending) -> None:
    """SIGTERM, grace, SIGKILL by the guards, each for its own. What outlives that is logged."""
    grace_ends = time.monotonic() + how.grace_s
    with Waiting(f"ending {', '.join(m.id for m in members[:4])} ..."):
        for group in [[m] for m in reversed(members)] if how.last_first else [members]:
            grace_s = max(0.0, grace_ends - time.monotonic())
            for survivor in kill({m.id: m.guard for m in group}, grace_s, grace_s + KILL_MARGIN_S):
                log.warning("SIGKILL did not end %s; its devices may still be in use", survivor)
