"""The backend without processes, for the suites."""

from __future__ import annotations

from typing import Any

from rolecall import Scheduler
from rolecall.testing import InProcessScheduler
from tests.support.backend import DEVICES, Backend


def make(**options: Any) -> Scheduler:
    return InProcessScheduler(**{"devices": range(DEVICES), **options})


BACKEND = Backend("in-process", make, own_processes=False)
