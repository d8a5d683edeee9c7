"""Log files: each worker writes its own, and the guard merges the lines of all into another."""

import os
import threading
from dataclasses import dataclass
from pathlib import Path

TAIL_BYTES = 4096
_CHUNK = 1 << 20  # read at once from one worker's log, so that a verbose one does not block the guard
_LINE = 1 << 16  # a longer line is merged in pieces


def log_path(run_dir: str, worker_id: str) -> str:
    """Where a worker's log is."""
    return str(Path(run_dir, "logs", worker_id.replace("/", "-") + ".log"))


def size(path: str) -> int:
    """Bytes that a log holds now, 0 when there is none."""
    try:
        return Path(path).stat().st_size
    except FileNotFoundError:
        return 0


def read_from(path: str, start: int, limit: int = _CHUNK) -> bytes:
    """Up to `limit` bytes of a log from `start` on."""
    try:
        with Path(path).open("rb") as file:
            file.seek(start)
            return file.read(limit)
    except FileNotFoundError:
        return b""


def tail(path: str, start: int = 0) -> str:
    """The last lines of a log, at most 4 KiB, and nothing from before `start` (an earlier worker of that name)."""
    end = size(path)
    first = max(start, end - TAIL_BYTES)
    text = read_from(path, first, TAIL_BYTES).decode(errors="replace")
    if first > start and "\n" in text:
        text = text.partition("\n")[2]  # the first line is cut
    return text


@dataclass(eq=False, slots=True)
class Source:
    """One worker's log, and how far it has been copied."""

    worker_id: str
    path: str
    offset: int
    rest: bytes = b""


class MergedLog:
    """Copies the lines of all workers' logs into one file, each with its worker's name.

    Lines are appended whole, so several guards may write to the same file. Any thread: run directories may be on
    shared file systems, which may hang, so files are read and written outside the guard's event loop.
    """

    def __init__(self, run_dir: str) -> None:
        path = Path(run_dir, "logs", "merged.log")
        path.parent.mkdir(parents=True, exist_ok=True)
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._copying = threading.Lock()
        self._sources: set[Source] = set()

    def follow(self, worker_id: str, path: str, start: int) -> Source:
        """Adds a worker's log. Returns at once."""
        source = Source(worker_id, path, start)
        self._sources.add(source)
        return source

    def unfollow(self, source: Source) -> None:
        """Copies the rest of the log, including an incomplete last line, and stops following it."""
        with self._copying:
            if source not in self._sources or self._fd < 0:
                return
            self._sources.discard(source)
            while self._copy(source):
                pass
            if source.rest:
                self._write(source.worker_id, [source.rest])

    def pump(self) -> None:
        """Copies the lines appended since the last call."""
        for source in list(self._sources):
            with self._copying:
                if source in self._sources:
                    self._copy(source)

    def _copy(self, source: Source) -> bool:
        data = read_from(source.path, source.offset) if size(source.path) > source.offset else b""
        source.offset += len(data)
        *lines, source.rest = (source.rest + data).split(b"\n")
        if len(source.rest) > _LINE:
            lines, source.rest = [*lines, source.rest], b""
        self._write(source.worker_id, lines)
        return bool(data)

    def _write(self, worker_id: str, lines: list[bytes]) -> None:
        prefix = f"[{worker_id}] ".encode()
        if lines:
            os.write(self._fd, b"".join(prefix + line + b"\n" for line in lines))

    def close(self) -> None:
        """Copies the rest of all logs. May be called twice."""
        for source in list(self._sources):
            self.unfollow(source)
        with self._copying:
            if self._fd >= 0:
                os.close(self._fd)
                self._fd = -1
