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
class FollowedLog:
    """One worker's log, and how much of it was copied. `rest` is an incomplete last line."""

    worker_id: str
    path: str
    offset: int
    rest: bytes = b""


class MergedLog:
    """Copies the lines of all workers' logs into one file, each prefixed with its worker's id.

    Lines are appended whole, so several guards may write to the same file. Methods may be called from any thread: a run
    directory may be on a shared file system, which may block, so the event loop's thread reads and writes nothing.
    """

    def __init__(self, run_dir: str) -> None:
        path = Path(run_dir, "logs", "merged.log")
        path.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._file = os.fdopen(fd, "ab", buffering=0)
        self._copying = threading.Lock()
        self._followed: set[FollowedLog] = set()

    def follow(self, worker_id: str, path: str, start: int) -> FollowedLog:
        """Adds a worker's log. Returns at once."""
        log = FollowedLog(worker_id, path, start)
        self._followed.add(log)
        return log

    def unfollow(self, log: FollowedLog) -> None:
        """Copies the rest of the log, including an incomplete last line, and stops following it."""
        with self._copying:
            if log not in self._followed or self._file.closed:
                return
            self._followed.discard(log)
            while self._copy(log):
                pass
            if log.rest:
                self._write(log.worker_id, [log.rest])

    def copy_new_lines(self) -> None:
        """Copies the lines appended since the last call."""
        for log in list(self._followed):
            with self._copying:
                if log in self._followed:
                    self._copy(log)

    def _copy(self, log: FollowedLog) -> bool:
        data = read_from(log.path, log.offset) if size(log.path) > log.offset else b""
        log.offset += len(data)
        *lines, log.rest = (log.rest + data).split(b"\n")
        if len(log.rest) > _LINE:
            lines, log.rest = [*lines, log.rest], b""
        self._write(log.worker_id, lines)
        return bool(data)

    def _write(self, worker_id: str, lines: list[bytes]) -> None:
        prefix = f"[{worker_id}] ".encode()
        if lines:
            self._file.write(b"".join(prefix + line + b"\n" for line in lines))

    def close(self) -> None:
        """Copies the rest of all logs. May be called twice."""
        for log in list(self._followed):
            self.unfollow(log)
        with self._copying:
            self._file.close()
