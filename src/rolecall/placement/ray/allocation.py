"""A role's placement groups and guards on Ray, as the controller follows and ends them through the run's driver."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import replace

from rolecall.placement.allocations import RUNS, AllocationStatus, ExitCause
from rolecall.placement.base import ExpectedGuard
from rolecall.placement.plan import Plan, with_devices
from rolecall.placement.sidecar import ANSWER_S, Sidecar
from rolecall.protocol.guard import NoArguments
from rolecall.protocol.ray_driver import COUNT_NODES, LOOK, RELEASE, OfGuard, OfRole, RoleNews

log = logging.getLogger("rolecall")
SILENCE_S, SHORT_S = 15.0, 1.0  # after the first a start is given up
RELEASE_S = 45.0  # longer than the driver takes to give up


class RayAllocation:
    """A role's placement groups and actors, as the driver tells of them."""

    def __init__(self, name: str, driver: Sidecar[RoleNews]) -> None:
        self._name, self._driver = name, driver
        self._heard = time.monotonic()

    @property
    def _news(self) -> RoleNews:
        return self._driver.latest(self._name) or RoleNews()

    def poll(self) -> AllocationStatus:
        news = self._news
        if news.state == "queued" and time.monotonic() > self._heard + ANSWER_S:
            if not answers(self._driver, SILENCE_S):
                return AllocationStatus("ended", _silence(self._driver))
            self._heard = time.monotonic()
        if self._driver.lost is not None:
            return AllocationStatus("ended", _silence(self._driver))
        return AllocationStatus(news.state, news.reason)

    def settled(self, plan: Plan, guards: Sequence[ExpectedGuard]) -> Plan | None:
        news = self._news
        if not news.guards or not all(guards[n].connected for n in news.guards):
            return None
        devices = {slot.worker_id: given for slot, given in zip(plan.slots, news.devices, strict=True)}
        return replace(plan, guards=tuple(news.guards), slots=with_devices(plan.slots, devices))

    def exit_cause(self, ordinal: int) -> ExitCause:
        known = self._news.ends.get(f"{self._name}-{ordinal}")
        if known is None and not self._driver.silent:  # who asks for the next guard need not wait as well
            known = self._driver.ask(LOOK, OfGuard(name=self._name, ordinal=ordinal))
        if known == "":
            return RUNS
        return ExitCause(True, known or _silence(self._driver))

    def release(self) -> None:
        self._driver.tell(RELEASE, OfRole(name=self._name))
        deadline = time.monotonic() + RELEASE_S
        # A guard may need its time to end.
        while not self._driver.wait_for(self._name, lambda news: news.left is not None, 1.0):
            if time.monotonic() > deadline or not answers(self._driver):
                break
        left = self._news.left
        if left is None:
            log.warning("Ray did not confirm the end of %s: %s", self._name, _silence(self._driver))
        for name in left or ():
            log.warning("Ray did not end %s", name)


def answers(driver: Sidecar[RoleNews], timeout: float | None = None) -> bool:
    """Whether Ray's head can still be asked. Who has waited in vain does not wait so long again."""
    nodes = driver.ask(COUNT_NODES, NoArguments(), timeout=timeout or (SHORT_S if driver.silent else ANSWER_S))
    return bool(nodes)


def _silence(driver: Sidecar[RoleNews]) -> str:
    if driver.lost is None:
        return "Ray does not answer: its head may be gone"
    return f"the connection to Ray is gone: {driver.lost}"
