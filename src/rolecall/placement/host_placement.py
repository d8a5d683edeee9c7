"""Placements on one host: roles are planned on it and its devices given out."""

from __future__ import annotations

import logging
import os
import threading
from abc import abstractmethod
from collections.abc import Sequence

from rolecall.errors import GPUAllocationError, WorkerConfigurationError
from rolecall.placement.base import Placed, Placement
from rolecall.placement.plan import Plan, separate_slots, warn_of_unused, with_devices
from rolecall.protocol.devices import visible_devices
from rolecall.types import CLUSTER_FIELDS, Job, role_and_index, worker_id

log = logging.getLogger("rolecall")


class HostPlacement(Placement):
    """Workers on one host. A backend adds how guards are brought up there, and ended.

    Args:
        devices: Names of the devices to give out; by default what the visible-devices variable lists, else what
            is counted.
        oversubscribe: Share devices in turn when more are asked for than are free.
    """

    def __init__(self, *, devices: Sequence[str | int] | None = None, oversubscribe: bool = False) -> None:
        if isinstance(devices, str | int):  # a text would fall apart into its letters
            raise WorkerConfigurationError("devices are no list", devices, "use a list of names, devices=[0, 1]")
        self.devices = [str(d) for d in devices] if devices is not None else visible_devices(os.environ)
        self.n_gpus_per_node = len(self.devices)
        self._oversubscribe, self._turn = oversubscribe, 0
        self._held: dict[str, tuple[str, ...]] = {}
        self._choosing = threading.Lock()

    def plan(self, job: Job) -> Plan:
        with self._choosing:
            return self._chosen(job)[0]

    def place(self, job: Job) -> Placed:
        guard_id = self._guard_for(job.role)
        warn_of_unused(job, CLUSTER_FIELDS, "on one machine")
        if (most := max(spec.cpu for spec in job.specs())) > (cores := os.cpu_count() or 1):
            log.warning("role %s: cpu=%d, and this machine has %d core(s): so many threads", job.role, most, cores)
        with self._choosing:
            plan, self._turn = self._chosen(job)
            self._held |= {slot.worker_id: slot.devices for slot in plan.slots}
        return Placed(plan, [guard_id] * len(plan.slots))

    def release(self, role: str) -> None:
        with self._choosing:
            self._held = {worker: its for worker, its in self._held.items() if role_and_index(worker)[0] != role}

    @abstractmethod
    def _guard_for(self, role: str) -> str:
        """The id of the guard that is to own a role's slots, once it has connected."""

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
