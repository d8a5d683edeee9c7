"""Schedulers with a single guard and a single pool of devices: the local one, and the one for tests."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rolecall.placement.devices import DevicePool
from rolecall.placement.plan import Plan, separate_slots, with_devices
from rolecall.protocol.devices import listed
from rolecall.scheduler.guards import GuardProxy
from rolecall.scheduler.scheduler import Scheduler
from rolecall.types import CLUSTER_FIELDS, Job, worker_id

log = logging.getLogger("rolecall")


class OneHostScheduler(Scheduler):
    """Plans on one host and gives its devices out.

    Args:
        devices: Names of the devices to give out; by default what the visible-devices variable lists, else what
            is counted.
        oversubscribe: Share devices in turn when more are asked for than are free.
        options: Those of `Scheduler`.
    """

    _guard: GuardProxy

    def __init__(
        self, *, devices: Sequence[str | int] | None = None, oversubscribe: bool = False, **options: Any
    ) -> None:
        found = [str(d) for d in devices] if devices is not None else visible_devices()
        self._pool = DevicePool(found, oversubscribe=oversubscribe)
        self._choosing = threading.RLock()
        self.n_gpus_per_node = len(found)
        super().__init__(**options)

    def _plan(self, job: Job) -> Plan:
        wants = {worker_id(job.role, i): spec.gpu for i, spec in enumerate(job.specs())}
        with self._choosing:
            devices = self._pool.preview(wants)
        return Plan(job.role, with_devices(separate_slots(job, os.cpu_count() or 1), devices))

    def _place(self, job: Job) -> tuple[Plan, list[GuardProxy]]:
        _warn_of_unused(job)
        self._wait_for_guard()
        with self._choosing:  # what is planned is taken at once: another thread may be starting a role too
            plan = self._plan(job)
            self._pool.take({slot.worker_id: slot.devices for slot in plan.slots})
        return plan, [self._guard] * len(plan.slots)

    def _wait_for_guard(self) -> None:
        """Returns once the guard is there, or raises why it is not."""

    def _withdraw(self, members: Sequence[str], role: str) -> None:
        with self._choosing:
            for member in members:
                self._pool.give_back(member)


def _warn_of_unused(job: Job) -> None:
    unused = [name for name in CLUSTER_FIELDS if any(getattr(spec, name) for spec in job.specs())]
    if unused:
        log.warning("role %s: %s mean nothing on one machine and are passed over", job.role, ", ".join(unused))


def visible_devices() -> list[str]:
    """What the visible-devices variable lists, else the device files that are there."""
    named = listed(os.environ)
    if named is not None:
        return named
    for pattern in ("nvidia[0-9]*", "davinci[0-9]*"):
        found = list(Path("/dev").glob(pattern))
        if found:
            return [str(i) for i in range(len(found))]
    return []
