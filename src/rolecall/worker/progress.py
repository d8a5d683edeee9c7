"""The worker's side of the progress page, which the guard reads from outside; see `protocol.progress`.

The heartbeat comes from a thread that needs the interpreter lock, so it stops while the lock is held or the process
is stopped. The guard decides what that means.
"""

from __future__ import annotations

import mmap
import threading
from pathlib import Path

from rolecall.protocol.progress import PAGE_BYTES, write

HEARTBEAT_S = 0.5


class Progress:
    """Counts and publishes. Without a page (tests, in-process workers) it only counts."""

    def __init__(self, path: str | None = None) -> None:
        self.begun = 0
        self.ended = 0
        self._beats = 1  # 0 means that nobody writes the page
        self._page: mmap.mmap | None = None
        self._stop = threading.Event()
        if path:
            with Path(path).open("r+b") as file:
                self._page = mmap.mmap(file.fileno(), PAGE_BYTES)
            self._publish()
            threading.Thread(target=self._beat, name="heartbeat", daemon=True).start()

    def begin(self) -> None:
        self.begun += 1
        self._publish()

    def end(self) -> None:
        self.ended += 1
        self._publish()

    def close(self) -> None:
        self._stop.set()

    def _publish(self) -> None:
        if self._page is not None:
            write(self._page, self._beats, self.begun, self.ended)

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT_S):
            self._beats += 1
            self._publish()
