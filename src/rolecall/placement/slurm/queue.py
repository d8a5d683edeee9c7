"""One look at Slurm's queue for all who want to know at the same time. It owns what was seen last, and ends nothing."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from rolecall.errors import SlurmError
from rolecall.placement.slurm.states import JobState
from rolecall.transport.call import fresh


class Queue:
    """This user's jobs, as fresh as whoever asks wants them. A failure is kept like an answer."""

    def __init__(self, ask: Callable[[float], dict[str, JobState]]) -> None:
        self._ask = ask
        self._lock = threading.Lock()
        self._seen: dict[str, JobState] | SlurmError = {}
        self._seen_at = float("-inf")

    def job(self, job_id: str, since: float, answer_s: float) -> JobState | None:
        """A job as it was at `since` (`time.monotonic`) or later; None when Slurm does not list it.

        Raises:
            SlurmError: No answer within `answer_s`.
        """
        if not self._lock.acquire(timeout=answer_s):
            raise SlurmError("squeue", f"no answer within {answer_s:g} s")
        try:
            if self._seen_at < since:
                self._look(answer_s)
            if isinstance(self._seen, SlurmError):
                raise fresh(self._seen)
            return self._seen.get(job_id)
        finally:
            self._lock.release()

    def _look(self, answer_s: float) -> None:
        asked_at = time.monotonic()  # what comes about while Slurm answers need not be in the answer
        try:
            self._seen = self._ask(answer_s)
        except SlurmError as e:
            self._seen = e
        self._seen_at = asked_at
