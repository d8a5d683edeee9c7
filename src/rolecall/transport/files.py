"""Files of a run: nobody else may write them whatever the umask, and a file system that hangs blocks no event loop."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import stat
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from rolecall.transport.codec.exceptions import said
from rolecall.transport.threads import beside, in_thread

DIRECTORY_MODE = 0o755
FILE_MODE = 0o644
MAX_WAITING = 10_000  # operations that wait for a file system; later ones are dropped

T = TypeVar("T")

log = logging.getLogger("rolecall")


def make_directories(path: Path) -> None:
    """Makes a directory and those above it that are missing."""
    if not path.is_dir():
        make_directories(path.parent)
        path.mkdir(mode=DIRECTORY_MODE, exist_ok=True)


def opener(path: str, flags: int, mode: int = FILE_MODE) -> int:
    """For `open(..., opener=)`. A FIFO that somebody has put there is an error (ENXIO), rather than waited for."""
    fd = os.open(path, flags | os.O_CLOEXEC | os.O_NONBLOCK, mode)
    if stat.S_ISFIFO(os.fstat(fd).st_mode):  # it has a reader; without one it cannot be opened
        os.close(fd)
        raise OSError(errno.ENXIO, "is a FIFO, not a file", path)
    return fd


def private_opener(path: str, flags: int) -> int:
    """As `opener`; a new file is for this user alone."""
    return opener(path, flags, 0o600)


class FileThread:
    """Runs operations on files one after another, on a daemon thread of its own, which lives while there are any.

    An open or a read of a network file system may never return, nor does the open of a FIFO. Then this thread hangs,
    and nothing else does.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.Lock()
        self._operations: deque[Callable[[], object]] = deque()
        self._runs = False

    def submit(self, operation: Callable[[], object]) -> bool:
        """Runs `operation` after those before it; says whether it will. An exception of it is logged. Any thread."""
        with self._lock:
            if len(self._operations) >= MAX_WAITING:
                return False
            self._operations.append(operation)
            starts = not self._runs
            if starts:
                self._runs = True
        if starts:
            beside(self._run, self._name)
        return True

    def drain(self, within: float) -> bool:
        """Waits at most `within` seconds for what was submitted; says whether all was done."""
        done = threading.Event()
        return self.submit(done.set) and done.wait(within)

    async def adrain(self, within: float) -> bool:
        """As `drain`, on an event loop."""
        return await read_within(within + 1.0, lambda: self.drain(within), False)

    def _run(self) -> None:
        while True:
            with self._lock:
                if not self._operations:
                    self._runs = False
                    return
                operation = self._operations.popleft()
            try:
                operation()
            except Exception as e:
                log.warning("%s: %s", self._name, said(e))


async def read_within(seconds: float, read: Callable[[], T], instead: T) -> T:
    """What `read` returns, on a thread of its own; `instead` where it raises OSError or takes longer."""
    try:
        return await asyncio.wait_for(in_thread(read), seconds)
    except OSError:  # TimeoutError is one
        return instead
