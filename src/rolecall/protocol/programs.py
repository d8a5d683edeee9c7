"""Programs as workers: how a dotted module is started, and when a program is ready that does not say so. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence

import msgspec

from rolecall.protocol.guard import Ready
from rolecall.types import check_argv, check_module

HEALTH = "/health"
MODULE = ("{python}", "-m")
# The reference system's arguments of a forked module.
ARGUMENTS = (
    *("--host", "{host}", "--port", "{port}"),
    *("--role", "{role}", "--worker-index", "{index}"),
    *("--experiment-name", "{experiment}", "--trial-name", "{trial}"),
)
_FIRST_PORT = re.compile(r"(?<!\{)\{(port|ports\[0\])\}(?!\})")


def program(command: str | Sequence[str], ready: Ready | None = None) -> tuple[list[str], Ready | None]:
    """Arguments with placeholders, and the condition of readiness.

    Args:
        command: A dotted module, which gets `ARGUMENTS` and is ready when `/health` answers or `rolecall.serve` serves;
            or a list, which stays as it is and, when it names its first port, is ready when it listens there.
        ready: A condition that the caller gave, in the place of these. A module with another than `/health` cannot
            serve as a worker, since it may be ready by both.
    """
    if isinstance(command, str):
        ready = ready or Ready(http=HEALTH)
        ready = msgspec.structs.replace(ready, worker=may_host_engines(ready))
        return [*MODULE, check_module(command), *ARGUMENTS], ready
    argv = check_argv(command)
    listens = any(map(_FIRST_PORT.search, argv))
    return list(argv), ready or (Ready(tcp=True) if listens else None)


def may_host_engines(ready: Ready | None) -> bool:
    """Whether to ask a program for engines: one with a `/health` may serve a worker's other routes, too."""
    return ready is not None and ready.http == HEALTH
