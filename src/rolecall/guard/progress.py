"""The guard's view of a worker's progress page; see `protocol.progress`."""

import os
from pathlib import Path

from rolecall.protocol.progress import PAGE_BYTES, SIZE, Counters, parse


class ProgressPage:
    """The file of a page; it is removed with the worker.

    Read, not mapped: a worker that cuts the file short must not be able to end the guard with SIGBUS.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        self._file = os.fdopen(fd, "rb+", buffering=0)
        self._file.truncate(PAGE_BYTES)

    def read(self) -> Counters:
        return parse(os.pread(self._file.fileno(), SIZE, 0))

    def close(self) -> None:
        """May be called twice."""
        self._file.close()
        Path(self.path).unlink(missing_ok=True)
