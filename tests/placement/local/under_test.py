"""The local backend, for the suites."""

from __future__ import annotations

from typing import Any

from rolecall import LocalScheduler, Scheduler
from tests.support.backend import DEVICES, Backend


def make(**options: Any) -> Scheduler:
    return LocalScheduler(**{"devices": range(DEVICES), **options})


BACKEND = Backend("local", make)
