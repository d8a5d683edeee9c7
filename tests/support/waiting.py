"""Waiting for what nothing tells of."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

SHORTEST_S, LONGEST_S = 0.005, 0.25  # between two looks


def poll(look: Callable[[], T], within: float) -> T:
    """The first true value of `look`, or its last one when the time is over.

    A pause lasts four times as long as the look before it: what is waited for needs the processor, too.
    """
    deadline = time.monotonic() + within
    while True:
        begun = time.monotonic()
        seen = look()
        now = time.monotonic()
        if seen or now > deadline:
            return seen
        time.sleep(min(max(SHORTEST_S, 4 * (now - begun)), LONGEST_S))


def wait_for(look: Callable[[], T], within: float, what: str) -> T:
    """The first true value of `look`; fails with what was last seen when the time is over."""
    seen = poll(look, within)
    assert seen, f"no {what} within {within} s (last seen: {seen!r})"
    return seen
