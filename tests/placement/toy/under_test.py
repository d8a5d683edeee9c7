"""The toy, for the contract of schedulers."""

from __future__ import annotations

from typing import Any

import rolecall
from tests.placement.toy.placement import ToyPlacement
from tests.support.backend import DEVICES, Backend


def make(**options: Any) -> rolecall.Scheduler:
    return rolecall.scheduler(ToyPlacement(devices=DEVICES), **options)


BACKEND = Backend("toy", make, contract_only=True, guards_of_roles=True)
