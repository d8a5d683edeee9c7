"""The slots of one host: roles are planned on it and its devices given out."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence

from rolecall.errors import GPUAllocationError, WorkerConfigurationError
from rolecall.placement.plan import Plan, separate_slots, warn_of_unused, with_devices
from rolecall.protocol.devices import visible_devices
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
        self.devices = [str(d) for d in devices] if devices is not None else visible_devices(os.environ)
        self._oversubscribe, self._turn = oversubscribe, 0
        self._held: dict[str, tuple[str, ...]] = {}
        self._choosing = threading.Lock()

    def plan(self, job: Job) -> Plan:
        """What `take` would give.

        Raises:
            GPUAllocationError: More devices than are free.
        """
        with self._choosing:
            return self._chosen(job)[0]

    def take(self, job: Job) -> Plan:
        """Plans a role and takes its devices, before another thread can. Errors as `plan`."""
        warn_of_unused(job, CLUSTER_FIELDS, "on one machine")
        with self._choosing:
            plan, self._turn = self._chosen(job)
            self._held |= {slot.worker_id: slot.devices for slot in plan.slots}
        return plan

    def give_back(self, role: str) -> None:
        """Frees the devices of a role."""
        with self._choosing:
            self._held = {worker: its for worker, its in self._held.items() if worker.rpartition("/")[0] != role}

    def _chosen(self, job: Job) -> tuple[Plan, int]:
        """The plan, and the index of the device that is shared next."""
        holders = {worker: list(its) for worker, its in self._held.items() if its}
        free = left = [d for d in self.devices if all(d not in its for its in holders.values())]
        given, turn = {}, self._turn
        for i, spec in enumerate(job.specs()):
            if spec.gpu <= len(left):
                chosen, left = left[: spec.gpu], left[spec.gpu :]
            elif self._oversubscribe and spec.gpu <= len(self.devices):
                chosen = [self.devices[(turn + n) % len(self.devices)] for n in range(spec.gpu)]
                turn += spec.gpu
            else:
                raise GPUAllocationError(sum(spec.gpu for spec in job.specs()), free, holders)
            given[worker_id(job.role, i)] = chosen
        return Plan(job.role, with_devices(separate_slots(job, os.cpu_count() or 1), given)), turn
