"""Threads, also where the system has no further one to give: a limit of processes or of memory is reached."""

from __future__ import annotations

import asyncio
import contextvars
import errno
import threading
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from contextlib import suppress
from typing import TypeVar

T = TypeVar("T")
U = TypeVar("U")


def start_thread(run: Callable[[], object], name: str) -> threading.Thread:
    """Starts a daemon thread.

    Raises:
        BlockingIOError: EAGAIN, the system gives no further thread.
    """
    thread = threading.Thread(target=run, name=name, daemon=True)
    try:
        thread.start()
    except RuntimeError as e:  # what Python makes of it
        raise BlockingIOError(errno.EAGAIN, str(e)) from e
    return thread


def beside(run: Callable[[], object], name: str) -> None:
    """Runs on a thread of its own; where the system gives none, here, which may block."""
    try:
        start_thread(run, name)
    except BlockingIOError:
        run()


def at_once(work: Callable[[U], T], items: Iterable[U], limit: int = 16) -> list[T]:
    """`work` of each item, in order: up to `limit` at the same time, or as many as the system has threads for."""
    todo = [(Future[T](), item) for item in items]
    left = deque(todo)

    def take() -> None:
        with suppress(IndexError):
            while True:
                done, item = left.popleft()
                try:
                    done.set_result(work(item))
                except BaseException as e:
                    done.set_exception(e)

    with suppress(BlockingIOError):
        for _ in range(min(limit, len(todo)) - 1):
            start_thread(take, "rolecall-at-once")
    take()
    return [done.result() for done, _ in todo]


async def in_thread(work: Callable[..., T], *args: object) -> T:
    """What `work(*args)` returns or raises; it is done beside the loop, also after the caller has given up."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()
    context = contextvars.copy_context()

    def finish(act: Callable[[], None]) -> None:
        try:
            loop.call_soon_threadsafe(lambda: None if done.done() else act())
        except RuntimeError:  # the loop is closed
            return

    def run() -> None:
        try:
            found = context.run(work, *args)
        except BaseException as e:
            error = e  # `e` is unbound after this block
            finish(lambda: done.set_exception(error))
        else:
            finish(lambda: done.set_result(found))

    beside(run, "rolecall-work")
    return await done
