"""A role's placement groups and guards on Ray, as the controller follows and ends them through the run's driver."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import replace

from rolecall.placement.allocations import AllocationStatus
from rolecall.placement.base import ExpectedGuard
from rolecall.placement.exit_causes import RUNS, ExitCause
from rolecall.placement.plan import Plan, with_devices
from rolecall.placement.sidecar import ANSWER_S, Sidecar
from rolecall.protocol.guard import NoArguments
from rolecall.protocol.ray_driver import (
    COUNT_NODES,
    GUARD_END,
    LAYOUT,
    LOOK,
    RELEASE,
    RELEASED,
    STATUS,
    OfGuard,
    OfRole,
)

log = logging.getLogger("rolecall")
SILENCE_S, SHORT_S = 15.0, 1.0  # after the first a start is given up
RELEASE_S = 45.0  # longer than the driver takes to give up


class RayAllocation:
    """A role's placement groups and actors, as the driver tells of them."""

    def __init__(self, name: str, driver: Sidecar) -> None:
        self._name, self._driver = name, driver
        self._heard = time.monotonic()

    def poll(self) -> AllocationStatus:
        status = self._status()
        if status.state == "queued" and time.monotonic() > self._heard + ANSWER_S:
            if not answers(self._driver, SILENCE_S):
                return AllocationStatus("ended", _silence(self._driver))
            self._heard = time.monotonic()
        return status if self._driver.lost is None else AllocationStatus("ended", _silence(self._driver))

    def settled(self, plan: Plan, guards: Sequence[ExpectedGuard]) -> Plan | None:
        layout = self._driver.latest(LAYOUT, self._name)
        if layout is None or not all(guards[n].hello for n in layout.guards):
            return None
        devices = {slot.worker_id: given for slot, given in zip(plan.slots, layout.devices, strict=True)}
        return replace(plan, guards=tuple(layout.guards), slots=with_devices(plan.slots, devices))

    def exit_cause(self, ordinal: int) -> ExitCause:
        known = self._driver.latest(GUARD_END, f"{self._name}-{ordinal}")
        if known is None and not self._driver.silent:  # who asks for the next guard need not wait as well
            known = self._driver.ask(LOOK, OfGuard(name=self._name, ordinal=ordinal))
        if known is None:
            return ExitCause(True, _silence(self._driver))
        return RUNS if known.reason is None else ExitCause(True, known.reason)

    def release(self) -> None:
        self._driver.tell(RELEASE, OfRole(name=self._name))
        deadline = time.monotonic() + RELEASE_S
        while not self._driver.wait_for(RELEASED, self._name, 1.0):  # a guard may need its time to end
            if time.monotonic() > deadline or not answers(self._driver):
                break
        done = self._driver.latest(RELEASED, self._name)
        if done is None:
            log.warning("Ray did not confirm the end of %s: %s", self._name, _silence(self._driver))
        for left in done.left if done else ():
            log.warning("Ray did not end %s", left)

    def _status(self) -> AllocationStatus:
        told = self._driver.latest(STATUS, self._name)
        return AllocationStatus(told.state, told.reason) if told else AllocationStatus("queued")


def answers(driver: Sidecar, timeout: float | None = None) -> bool:
    """Whether Ray's head can still be asked. Who has waited in vain does not wait so long again."""
    nodes = driver.ask(COUNT_NODES, NoArguments(), timeout=timeout or (SHORT_S if driver.silent else ANSWER_S))
    return bool(nodes)


def _silence(driver: Sidecar) -> str:
    if driver.lost is None:
        return "Ray does not answer: its head may be gone"
    return f"the connection to Ray is gone: {driver.lost}"
