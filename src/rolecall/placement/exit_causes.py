"""Asks a cluster's manager why a guard ended or a worker was killed. Beside the I/O thread, since answers take time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import NamedTuple

from rolecall.placement.base import ExpectedGuard
from rolecall.transport.loop import IOThread

log = logging.getLogger("rolecall")
LOOK_S = 0.25


class ExitCause(NamedTuple):
    """What a cluster's manager says became of a guard.

    Attributes:
        ended: False while the manager says that it runs.
        reason: Why, as far as it says.
        final: It will not say more.
    """

    ended: bool
    reason: str = ""
    final: bool = True


RUNS = ExitCause(ended=False)


class ExitCauses:
    """Why guards have ended, in the words of the manager that may have ended them.

    One thread asks for all, one after the other: they have one manager, which is asked no more often for more of them.

    Args:
        ask: What the manager says of a guard.
        io: Answers are delivered there.
    """

    def __init__(self, ask: Callable[[ExpectedGuard], ExitCause], io: IOThread) -> None:
        self._ask_manager, self._io = ask, io
        self._asking = ThreadPoolExecutor(1, "rolecall-exit-causes")
        self._open: set[asyncio.Task[None]] = set()
        self._closing = False

    def explain(self, guard: ExpectedGuard, then: Callable[[str], None], *, patient: bool, limit_s: float) -> None:
        """Has `then` called, once, on the I/O thread, with what became of a guard or of what it owned.

        Args:
            patient: The guard has ended for sure: give the manager time to notice.
            limit_s: After so many seconds `then` gets what is known by then, whatever the manager does.
        """

        def begin() -> None:
            task = self._io.loop.create_task(self._explain(guard, then, patient, limit_s))
            self._open.add(task)
            task.add_done_callback(self._open.discard)

        self._io.call_soon(begin)

    def close(self) -> None:
        """Answers what is still asked, with what is known. May be called twice."""
        self._io.run(self._answer_all())
        self._asking.shutdown(cancel_futures=True)

    async def _answer_all(self) -> None:
        self._closing = True
        for task in self._open:
            task.cancel()
        if self._open:
            await asyncio.wait(self._open)

    async def _explain(self, guard: ExpectedGuard, then: Callable[[str], None], patient: bool, limit_s: float) -> None:
        reason = ""
        with suppress(TimeoutError, asyncio.CancelledError):
            async with asyncio.timeout(limit_s):
                while not self._closing:
                    cause = await self._io.loop.run_in_executor(self._asking, self._look, guard)
                    reason = cause.reason or reason
                    if cause.final and (cause.ended or not patient):
                        break
                    await asyncio.sleep(LOOK_S)
        then(reason)

    def _look(self, guard: ExpectedGuard) -> ExitCause:
        try:
            return self._ask_manager(guard)
        except Exception as e:  # whatever the manager's tools do, the caller must learn of the loss
            log.info("guard %s: its cluster did not say what became of it: %s", guard.guard_id, e)
            return ExitCause(ended=True, final=False)  # it may say so yet
