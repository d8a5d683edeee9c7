"""The thread on which an engine's plain methods run, one after the other: collectives need one thread and one order."""

from __future__ import annotations

import asyncio
import logging
import queue
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from rolecall.transport.codec.exceptions import format_traceback, said
from rolecall.transport.threads import start_thread
from rolecall.worker.progress import Progress

T = TypeVar("T")

log = logging.getLogger("rolecall")


class EngineThread:
    """Runs jobs one at a time on a thread of its own."""

    def __init__(self, name: str, progress: Progress) -> None:
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._progress = progress
        self._name = f"engine {name}"
        start_thread(self._run, self._name)

    @property
    def waiting(self) -> int:
        """Number of jobs in the queue."""
        return self._jobs.qsize()

    def submit(self, job: Callable[[], None]) -> None:
        """Runs `job` after the jobs submitted before. It must not raise; its submitter handles errors."""
        self._jobs.put(job)

    async def run(self, fn: Callable[[], T]) -> T:
        """Runs `fn` after the jobs submitted before, and returns its result or raises its exception."""
        done: Future[T] = Future()
        done.set_running_or_notify_cancel()  # who no longer waits cancels nothing

        def job() -> None:
            try:
                done.set_result(fn())
            except BaseException as e:
                done.set_exception(e if isinstance(e, Exception) else RuntimeError(said(e)))

        self.submit(job)
        return await asyncio.wrap_future(done)

    def close(self) -> None:
        """Lets the thread end after the jobs already submitted."""
        self._jobs.put(None)

    def _run(self) -> None:
        get, progress = self._jobs.get, self._progress
        while (job := get()) is not None:
            progress.begin()
            try:
                job()
            except BaseException as e:  # a bug of the submitter must not end the thread
                log.error("a job of thread %r raised\n%s", self._name, format_traceback(e))
            finally:
                progress.end()
