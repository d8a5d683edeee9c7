"""What workers print, on the controller's terminal."""

from __future__ import annotations

import os
import threading
import zlib
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, TextIO

from rolecall.errors import printable
from rolecall.transport.threads import start_thread

PERIOD_S = 0.1
BLOCK = 1 << 16
REST_BYTES = 1 << 20  # of what is left when the run ends
_COLOURS = (36, 32, 33, 35, 34, 31)


def takes_colours(stream: TextIO) -> bool:
    """Whether it is a terminal whose user does not forbid them (NO_COLOR)."""
    return stream.isatty() and not os.environ.get("NO_COLOR")


def prefix_of(worker: str, colours: bool) -> str:
    """What stands before a worker's lines."""
    colour = _COLOURS[zlib.crc32(worker.encode()) % len(_COLOURS)]
    return f"\x1b[{colour}m[{worker}]\x1b[0m " if colours else f"[{worker}] "


class LogEcho:
    """Copies the merged log of a run to a stream, line by line, from a thread of its own.

    It has the logs of guards that share the run directory with the controller; each line begins with its worker's id.
    """

    def __init__(self, path: Path, stream: TextIO) -> None:
        self._path, self._stream = path, stream
        self._rest = b""
        self._colours = takes_colours(stream)
        self._stopped = threading.Event()
        self._thread = start_thread(self._run, "rolecall-echo")

    def close(self) -> None:
        """Copies what is left, up to a limit. May be called twice."""
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        with suppress(OSError, ValueError):  # the stream was closed, or the run directory removed
            while not self._path.exists():
                if self._stopped.wait(PERIOD_S) and not self._path.exists():
                    return
            with self._path.open("rb") as file:
                while not self._stopped.wait(PERIOD_S):
                    self._copy(file, BLOCK)
                self._copy(file, REST_BYTES)
                if file.read(1):
                    print(f"rolecall: the rest is in {self._path}", file=self._stream)

    def _copy(self, file: BinaryIO, limit: int) -> None:
        while limit > 0 and (data := file.read(min(limit, BLOCK))):
            limit -= len(data)
            *lines, self._rest = (self._rest + data).split(b"\n")
            self._stream.writelines(map(self._shown, lines))
            self._stream.flush()

    def _shown(self, line: bytes) -> str:
        text = printable(line.decode(errors="replace"))
        worker, bracket, said = text.partition("] ")
        return f"{prefix_of(worker[1:], self._colours)}{said}\n" if bracket else text + "\n"
