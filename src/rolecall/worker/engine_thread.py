"""The lane: the one thread on which an engine's plain methods run, in order. Collectives need exactly that."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

from rolecall.worker.progress import Progress


class EngineThread:
    """Runs jobs one at a time on a thread of its own.

    A job must not raise: whoever submits it answers for its errors.
    """

    def __init__(self, name: str, progress: Progress) -> None:
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._progress = progress
        self.waiting = 0
        self._thread = threading.Thread(target=self._run, name=f"lane {name}", daemon=True)
        self._thread.start()

    def submit(self, job: Callable[[], None]) -> None:
        self.waiting += 1
        self._jobs.put(job)

    def close(self) -> None:
        """Lets the thread end after the jobs already submitted."""
        self._jobs.put(None)

    def _run(self) -> None:
        get, progress = self._jobs.get, self._progress
        while (job := get()) is not None:
            self.waiting -= 1
            progress.begin()
            try:
                job()
            finally:
                progress.end()
