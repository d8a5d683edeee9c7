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

log = logging.getLogger("rolecall")
SILENCE_S, SHORT_S = 15.0, 1.0  # after the first a start is given up
RELEASE_S = 45.0  # longer than the driver takes to give up


class RayAllocation:
    """A role's placement groups and actors, as the driver tells of them."""

    def __init__(self, name: str, driver: Sidecar) -> None:
        self._name, self._driver = name, driver
        self._heard = time.monotonic()

    def poll(self) -> AllocationStatus:
        status = AllocationStatus(*self._driver.news.get(f"state {self._name}", ("queued", "")))
        if status.state == "queued" and time.monotonic() > self._heard + ANSWER_S:
            if not answers(self._driver, SILENCE_S):
                return AllocationStatus("ended", _silence(self._driver))
            self._heard = time.monotonic()
        return status if self._driver.lost is None else AllocationStatus("ended", _silence(self._driver))

    def settled(self, plan: Plan, guards: Sequence[ExpectedGuard]) -> Plan | None:
        layout = self._driver.news.get(f"layout {self._name}")
        if layout is None or not all(guards[n].hello for n in layout["guards"]):
            return None
        devices = {slot.worker_id: given for slot, given in zip(plan.slots, layout["devices"], strict=True)}
        return replace(plan, guards=tuple(layout["guards"]), slots=with_devices(plan.slots, devices))

    def exit_cause(self, ordinal: int) -> ExitCause:
        known: str | None = self._driver.news.get(f"exit {self._name} {ordinal}")
        if known is not None:
            return ExitCause(True, known)
        if self._driver.silent:  # who asks for the next guard need not wait as well
            return ExitCause(True, _silence(self._driver))
        answered, words = self._driver.ask("look", name=self._name, ordinal=ordinal)
        if not answered:
            return ExitCause(True, _silence(self._driver))
        return RUNS if words is None else ExitCause(True, words)

    def release(self) -> None:
        self._driver.tell("release", name=self._name)
        done, deadline = f"released {self._name}", time.monotonic() + RELEASE_S
        while not self._driver.wait_for(done, 1.0) and answers(self._driver) and time.monotonic() < deadline:
            pass  # a guard may need its time to end
        if done in self._driver.news:
            for left in self._driver.news[done]:
                log.warning("Ray did not end %s", left)
        else:
            log.warning("Ray did not confirm the end of %s: %s", self._name, _silence(self._driver))


def answers(driver: Sidecar, timeout: float | None = None) -> bool:
    """Whether Ray's head can still be asked. Who has waited in vain does not wait so long again."""
    return bool(driver.ask("ping", timeout=timeout or (SHORT_S if driver.silent else ANSWER_S))[1])


def _silence(driver: Sidecar) -> str:
    if driver.lost is None:
        return "Ray does not answer: its head may be gone"
    return f"the connection to Ray is gone: {driver.lost}"
