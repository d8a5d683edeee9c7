"""Threads, also where the system has no further one to give: a limit of processes or of memory is reached."""

from __future__ import annotations

import asyncio
import contextvars
import errno
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


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
