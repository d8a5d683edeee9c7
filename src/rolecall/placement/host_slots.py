"""The slots of one host: roles are planned on it and its devices given out."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from pathlib import Path

from rolecall.errors import WorkerConfigurationError
from rolecall.placement.devices import DevicePool
from rolecall.placement.plan import Plan, separate_slots, warn_of_unused, with_devices
from rolecall.protocol.devices import listed
from rolecall.types import CLUSTER_FIELDS, Job, worker_id


class HostSlots:
    """What a placement on one host plans with. From any thread.

    Args:
        devices: Names of the devices to give out; by default what the visible-devices variable lists, else what
            is counted.
        oversubscribe: Share devices in turn when more are asked for than are free.
    """

    def __init__(self, devices: Sequence[str | int] | None = None, *, oversubscribe: bool = False) -> None:
        if isinstance(devices, str | int):  # a text would fall apart into its letters
            raise WorkerConfigurationError("devices are no list", devices, "use a list of names, devices=[0, 1]")
        self.devices = [str(d) for d in devices] if devices is not None else visible_devices()
        self._pool = DevicePool(self.devices, oversubscribe=oversubscribe)
        self._choosing = threading.RLock()

    def plan(self, job: Job) -> Plan:
        """What `take` would give.

        Raises:
            GPUAllocationError: More devices than are free.
        """
        wants = {worker_id(job.role, i): spec.gpu for i, spec in enumerate(job.specs())}
        with self._choosing:
            devices = self._pool.preview(wants)
        return Plan(job.role, with_devices(separate_slots(job, os.cpu_count() or 1), devices))

    def take(self, job: Job) -> Plan:
        """Plans a role and takes its devices, before another thread can. Errors as `plan`."""
        warn_of_unused(job, CLUSTER_FIELDS, "on one machine")
        with self._choosing:
            plan = self.plan(job)
            self._pool.take({slot.worker_id: slot.devices for slot in plan.slots})
        return plan

    def give_back(self, role: str) -> None:
        """Frees the devices of a role."""
        with self._choosing:
            for owner in self._pool.holders():
                if owner.rpartition("/")[0] == role:
                    self._pool.give_back(owner)


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
