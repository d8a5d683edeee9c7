"""Asks a cluster's manager why a guard ended or a worker was killed. Beside the I/O thread, since answers take time."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from rolecall.schedulers.guards import GuardProxy

log = logging.getLogger("rolecall")
PATIENCE_S = 10.0  # a manager learns of an end a moment after we do
LOOK_S = 0.25


class Fates:
    """What became of guards, in the words of who may have ended them.

    Args:
        ask: Says it of one guard; None while its manager says that it runs, "" when it will never say anything.
        deliver: Calls a function with an argument where answers are wanted, on the I/O thread.
    """

    def __init__(
        self, ask: Callable[[GuardProxy], str | None], deliver: Callable[[Callable[[str], None], str], None]
    ) -> None:
        self._ask_manager, self._deliver = ask, deliver
        self._pool = ThreadPoolExecutor(8, thread_name_prefix="rolecall-fates")
        self._closing = threading.Event()

    def explain(self, guard: GuardProxy, then: Callable[[str], None], *, patient: bool) -> None:
        """Has `then` called with what became of a guard, or of what it owned.

        Args:
            patient: Give the manager a moment to notice, where it is sure that something ended.
        """
        try:
            self._pool.submit(lambda: self._deliver(then, self._wait(guard, PATIENCE_S if patient else 0.0)))
        except RuntimeError:  # closed
            self._deliver(then, "")

    def close(self) -> None:
        """Answers what is still asked, with nothing."""
        self._closing.set()
        self._pool.shutdown()

    def _wait(self, guard: GuardProxy, patience_s: float) -> str:
        deadline = time.monotonic() + patience_s
        while not self._closing.is_set():
            words = self._look(guard)
            if words is not None:
                return words
            if time.monotonic() > deadline:
                break
            self._closing.wait(LOOK_S)
        return ""

    def _look(self, guard: GuardProxy) -> str | None:
        try:
            return self._ask_manager(guard)
        except Exception as e:  # whatever the manager's tools do, the caller must learn of the loss
            log.warning("guard %s: its cluster did not say what became of it: %s", guard.guard_id, e)
            return ""
