"""IOThread owns a thread with an event loop. It knows nothing of what runs there."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from rolecall.transport.threads import start_thread

T = TypeVar("T")


def new_loop(*, uvloop: bool | None = None) -> asyncio.AbstractEventLoop:
    """A new event loop: uvloop's where it can be imported, else asyncio's. `uvloop` forces one or the other."""
    if uvloop is False or (uvloop is None and not _standard_files_open()):
        return asyncio.new_event_loop()
    try:
        import uvloop as fast
    except ImportError:
        if uvloop:
            raise
        return asyncio.new_event_loop()
    loop: asyncio.AbstractEventLoop = fast.new_event_loop()
    return loop


def _standard_files_open() -> bool:
    """Where stdin, stdout or stderr is closed, a loop's own files get its number, and libuv aborts on closing them."""
    try:
        for number in range(3):
            os.fstat(number)
    except OSError:
        return False
    return True


class Tasks:
    """Tasks that run beside each other on the loop, each kept until it has ended. On the loop's thread."""

    def __init__(self) -> None:
        self._running: set[asyncio.Task[None]] = set()

    def start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Starts a task."""
        task = asyncio.get_running_loop().create_task(work)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return task

    async def cancel(self, timeout: float | None = None) -> None:
        """Cancels all tasks, and waits for them. May be called twice."""
        running = list(self._running)
        for task in running:
            task.cancel()
        if running:
            await asyncio.wait(running, timeout=timeout)


class IOThread:
    """A daemon thread that runs one event loop until `close()`, which leaves no task behind."""

    def __init__(self, name: str = "rolecall-io", *, uvloop: bool | None = None) -> None:
        self.loop = new_loop(uvloop=uvloop)
        self._lock = threading.Lock()
        self._closed = False
        self._thread = start_thread(self._main, name)

    def run(self, coro: Coroutine[Any, Any, T], timeout: float | None = None) -> T:
        """Runs `coro` on the loop and waits for its result; Ctrl-C cancels it.

        Raises:
            TimeoutError: `timeout` seconds passed; the coroutine was cancelled.
            RuntimeError: The thread is closed, or this is the thread itself, which would wait for itself.
        """
        if self._closed or self.on_thread:
            coro.close()
            what = "cannot wait for itself" if self.on_thread else "is closed"
            raise RuntimeError(f"the I/O thread {what}")
        future = asyncio.run_coroutine_threadsafe(coro, self.loop)
        try:
            return future.result(timeout)
        except BaseException:
            future.cancel()
            raise

    def call_soon(self, fn: Callable[..., object], *args: Any) -> None:
        """Calls `fn` on the loop soon, from any thread; does nothing once the loop is closed."""
        try:
            self.loop.call_soon_threadsafe(fn, *args)
        except RuntimeError:
            if not self._closed:
                raise

    @property
    def on_thread(self) -> bool:
        """Whether the calling thread is this one."""
        return threading.get_ident() == self._thread.ident

    def close(self) -> None:
        """Cancels all tasks, waits for them, and ends the thread. May be called twice, and from several threads."""
        with self._lock:
            first, self._closed = not self._closed, True
        if first:
            self.loop.call_soon_threadsafe(self.loop.stop)
        if not self.on_thread:
            self._thread.join()

    def _main(self) -> None:
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_forever()
            self.loop.run_until_complete(_end_tasks(self.loop))
            self.loop.run_until_complete(self.loop.shutdown_asyncgens())
            self.loop.run_until_complete(self.loop.shutdown_default_executor())
        finally:
            asyncio.set_event_loop(None)
            self.loop.close()

    def __enter__(self) -> IOThread:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


async def _end_tasks(loop: asyncio.AbstractEventLoop) -> None:
    mine = asyncio.current_task(loop)
    while tasks := [t for t in asyncio.all_tasks(loop) if t is not mine]:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks, timeout=1.0)  # again: a task may have started another while it was ending
