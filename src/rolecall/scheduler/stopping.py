"""Ending workers: their engines' `destroy()` together, then their processes, seen dead."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import suppress

from rolecall.errors import RolecallError
from rolecall.placement.waiting import Waiting
from rolecall.protocol.guard import KILL, Kill
from rolecall.protocol.message import to_plain
from rolecall.protocol.worker_methods import DESTROY, Destroy
from rolecall.scheduler.guards import ask_all
from rolecall.scheduler.table import Member, RoleRecord
from rolecall.transport.peer import Call

log = logging.getLogger("rolecall")
DESTROY_TIMEOUT_S = 10.0
MARGIN_S = 20.0


def destroy_engines(record: RoleRecord, timeout: float = DESTROY_TIMEOUT_S) -> None:
    """Asks all members at the same time, since ending a process group is a collective; bounded."""
    calls: list[tuple[Member, Call]] = []
    for i, member in enumerate(record.members):
        engines = [f"{record.name}/{i}"] if record.borrowed else None
        wanted = to_plain(Destroy(engines=engines, timeout=timeout))
        with suppress(RolecallError):  # it died meanwhile
            if member.client is not None:
                calls.append((member, member.client.peer.request(DESTROY.name, wanted, timeout=timeout + 1)))
    for member, call in calls:
        _report(member, call)


def _report(member: Member, call: Call) -> None:
    try:
        problems: dict[str, str] = call.result()
    except (RolecallError, TimeoutError) as e:
        log.warning("%s: destroy() of its engines was not called: %s", member.id, e)
        return
    for engine, problem in problems.items():
        log.warning("%s: engine %s: %s", member.id, engine, problem)


def kill(members: Sequence[Member], grace_s: float) -> None:
    """SIGTERM, grace, SIGKILL by the guards, each for its own, all at once. What outlives that is logged."""
    by_guard: dict[str, list[Member]] = {}
    for member in members:
        by_guard.setdefault(member.guard.guard_id, []).append(member)
    requests = [(group[0].guard, Kill(workers=[m.id for m in group], grace_s=grace_s)) for group in by_guard.values()]
    with Waiting(f"ending {', '.join(m.id for m in members[:4])} ..."):
        for report in ask_all(KILL, requests, grace_s + MARGIN_S):
            for survivor in report.survivors if report else ():
                log.warning("SIGKILL did not end %s; its devices may still be in use", survivor)
