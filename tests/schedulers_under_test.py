"""The schedulers that the contract suite runs against."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from rolecall import LocalScheduler, Scheduler
from rolecall.testing import InProcessScheduler

BACKENDS = ["local", "in-process"]


def make_scheduler(backend: str, *, fileroot: Path, **options: Any) -> Scheduler:
    makers: dict[str, Callable[..., Scheduler]] = {"local": LocalScheduler, "in-process": InProcessScheduler}
    return makers[backend](fileroot=fileroot, **{"experiment": "contract", "trial": "t", "preload": [], **options})
