"""The guard's view of a worker's progress page; see `protocol.progress`."""

import os
from pathlib import Path

from rolecall.protocol.progress import PAGE_BYTES, SIZE, Counters, parse


class ProgressPage:
    """The file of a page; it is removed with the worker.

    Read, not mapped: a worker that cuts the file short must not be able to end the guard with SIGBUS.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        os.ftruncate(self._fd, PAGE_BYTES)

    def read(self) -> Counters:
        return parse(os.pread(self._fd, SIZE, 0))

    def close(self) -> None:
        """May be called twice."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        Path(self._path).unlink(missing_ok=True)
