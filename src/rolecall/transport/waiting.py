"""Condition variables that threads and tasks of any event loop can wait on.

`Waitable` owns the list of waiters; the condition is a predicate of the waiter.
"""

from __future__ import annotations

import asyncio
import threading
import time
from asyncio.events import _get_running_loop
from collections import deque
from collections.abc import Callable
from functools import partial
from weakref import WeakKeyDictionary, ref


class LoopWaker:
    """Completes futures of one event loop from other threads, with one wake-up for as many as are ready."""

    __slots__ = ("_due", "_loop", "_scheduled")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = ref(loop)  # weak: must not keep a closed loop alive
        self._due: deque[asyncio.Future[None]] = deque()
        self._scheduled = False

    def wake(self, future: asyncio.Future[None]) -> None:
        """Completes `future` soon. Any thread."""
        loop = self._loop()
        if loop is None:
            return
        self._due.append(future)
        if _get_running_loop() is loop:
            self._flush()
        elif not self._scheduled:
            self._scheduled = True
            try:
                loop.call_soon_threadsafe(self._flush)
            except RuntimeError:  # that loop is closed, and its tasks with it
                self._due.clear()
                self._scheduled = False

    def _flush(self) -> None:
        self._scheduled = False  # before draining: a later append schedules again
        due = self._due
        while due:
            future = due.popleft()
            if not future.done():
                future.set_result(None)


_wakers: WeakKeyDictionary[asyncio.AbstractEventLoop, LoopWaker] = WeakKeyDictionary()  # of each loop with waiters


class Waitable:
    """Something to wait for. Change what the predicate reads, then call `wake()`: no wake-up is lost.

    A waiter enters the list before it evaluates the predicate, and `wake` empties the list after the change, so the
    waiter sees the change or is woken.
    """

    __slots__ = ("_waiters",)

    def __init__(self) -> None:
        self._waiters: list[Callable[[], object]] = []

    def wake(self) -> None:
        """Makes all waiters evaluate their predicates again. Any thread."""
        waiters = self._waiters
        while waiters:
            try:
                wake = waiters.pop()
            except IndexError:  # another thread took the last one
                return
            wake()

    def wait(self, ready: Callable[[], bool], deadline: float | None = None) -> bool:
        """Blocks this thread until `ready()`; False when `deadline` (of `time.monotonic`) passed before."""
        while not ready():
            lock = threading.Lock()
            lock.acquire()
            self._waiters.append(lock.release)
            if ready():
                return True
            if deadline is None:
                lock.acquire()
                continue
            left = deadline - time.monotonic()
            if left <= 0 or not lock.acquire(timeout=min(left, threading.TIMEOUT_MAX)):
                self._leave(lock.release)
                return ready()
        return True

    async def wait_async(self, ready: Callable[[], bool], deadline: float | None = None) -> bool:
        """As `wait`, for a task of any event loop."""
        while not ready():
            loop = asyncio.get_running_loop()
            future: asyncio.Future[None] = loop.create_future()
            waker = _wakers.get(loop) or _wakers.setdefault(loop, LoopWaker(loop))
            wake = partial(waker.wake, future)
            self._waiters.append(wake)
            if ready():
                return True
            if deadline is not None and deadline <= time.monotonic():
                self._leave(wake)
                return False
            timer = None if deadline is None else loop.call_later(deadline - time.monotonic(), wake)
            try:
                await future
            finally:
                if timer is not None:
                    timer.cancel()
                self._leave(wake)
        return True

    def _leave(self, wake: Callable[[], object]) -> bool:
        """Whether it was still in the list: a waiter is woken, or leaves, once."""
        try:
            self._waiters.remove(wake)
        except ValueError:
            return False
        return True
