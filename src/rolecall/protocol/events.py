"""What happens to workers and guards, as guards notify the controller of it and as `events.jsonl` keeps it.

`EVENTS` names the topic of each. The first four come from guards, the others from the controller itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from rolecall.protocol.message import Message


class Exited(Message, frozen=True, kw_only=True):
    """A worker ended that nobody asked to end.

    Attributes:
        reason: What is known beyond exit code and signal, that memory ran out for instance; empty when nothing is.
    """

    worker: str
    pid: int
    exit_code: int | None
    signal: int | None
    reason: str
    log_tail: str
    log_path: str
    host: str


class Stalled(Message, frozen=True, kw_only=True):
    """A worker lives but does not run. `kind` is `stopped` (by a signal or debugger) or `suspected`."""

    worker: str
    pid: int
    kind: Literal["stopped", "suspected"]
    reason: str
    stacks: str


class Resumed(Message, frozen=True, kw_only=True):
    """A worker that had stalled runs again."""

    worker: str


class Notice(Message, frozen=True, kw_only=True):
    """The cluster's manager is about to end a role. `seconds`: about how long it has."""

    role: str
    reason: str
    seconds: int


class GuardLost(Message, frozen=True, kw_only=True):
    """A guard is gone, and with it its workers."""

    guard: str
    reason: str


class GuardStalled(Message, frozen=True, kw_only=True):
    """A guard lives but does not run."""

    guard: str
    pid: int
    reason: str


Event = Exited | Stalled | Resumed | Notice | GuardLost | GuardStalled

EVENTS: Mapping[str, type[Event]] = {
    "exited": Exited,
    "stalled": Stalled,
    "resumed": Resumed,
    "notice": Notice,
    "guard_lost": GuardLost,
    "guard_stalled": GuardStalled,
}
LEASE, ALIVE = "lease", "alive"  # the controller renews a guard's lease; the guard answers that it lives
FROM_GUARDS = ("exited", "stalled", "resumed", "notice")


def topic_of(event: Event) -> str:
    """The name under which an event travels and is kept."""
    return next(topic for topic, kind in EVENTS.items() if kind is type(event))
