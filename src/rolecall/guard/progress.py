"""The progress page: one page of a file that a worker maps and writes and the guard reads. It costs neither a call.

Layout: `<QQQ`, the heartbeat's counter, calls begun, calls ended.
"""

import os
import struct
from pathlib import Path
from typing import NamedTuple

PAGE_BYTES = 4096
LAYOUT = struct.Struct("<QQQ")


class Counters(NamedTuple):
    """What a worker counts. A heartbeat of 0 means that it does not write the page."""

    heartbeat: int = 0
    begun: int = 0
    ended: int = 0


class ProgressPage:
    """The guard's view of a page. The file goes with it.

    Read, not mapped: a worker that cuts the file short must not be able to end the guard with SIGBUS.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        os.ftruncate(self._fd, PAGE_BYTES)

    def read(self) -> Counters:
        data = os.pread(self._fd, LAYOUT.size, 0)
        return Counters(*LAYOUT.unpack(data)) if len(data) == LAYOUT.size else Counters()

    def close(self) -> None:
        """May be called twice."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        Path(self._path).unlink(missing_ok=True)
