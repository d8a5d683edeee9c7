"""Log files: each worker writes its own, and the guard merges the lines of all into another."""

import os
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rolecall.errors import explained
from rolecall.transport.files import FileThread, make_directories, private_opener, read_within

TAIL_BYTES = 4096
TAIL_S = 2.0  # for a file system to give it
COPY_S = 0.1  # of every 0.2 s
MAX_LAG = 64 << 20  # bytes of one log that the merged one may be behind
_CHUNK = 1 << 20  # read at once from one worker's log, so that others get their turn
_LINE = 1 << 16  # a longer line is merged in pieces


def append_to(path: str) -> int:
    """A descriptor that appends to a log; a new one is for this user alone."""
    return private_opener(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)


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


def open_log(path: str) -> int | str:
    """A descriptor that appends to a log, or why there is none."""
    try:
        return append_to(path)
    except OSError as e:
        return explained(e)


async def tail_soon(path: str, start: int = 0) -> str:
    """As `tail`; empty where the file system hangs."""
    return await read_within(TAIL_S, partial(tail, path, start), "")


@dataclass(eq=False, slots=True)
class FollowedLog:
    """One worker's log, and how much of it was copied. `rest` is an incomplete last line."""

    worker_id: str
    path: str
    offset: int
    rest: bytes = b""


class MergedLog:
    """Copies the lines of all workers' logs into one file, each prefixed with its worker's id.

    Lines are appended whole, so several guards may write to the same file. Everything is copied on one thread, since
    the file system of a run directory may hang. What is written faster than copied is left out beyond `MAX_LAG`.
    """

    def __init__(self, run_dir: str, files: FileThread) -> None:
        path = Path(run_dir, "logs", "merged.log")
        make_directories(path.parent)
        self._file = os.fdopen(append_to(str(path)), "ab", buffering=0)
        self._files = files
        self._followed: set[FollowedLog] = set()
        self._copying = False
        self._unwritten = b""  # since the disk is full

    def follow(self, worker_id: str, path: str, start: int) -> FollowedLog:
        """Adds a worker's log. Returns at once."""
        log = FollowedLog(worker_id, path, start)
        self._followed.add(log)
        return log

    def unfollow(self, log: FollowedLog) -> None:
        """Stops following a log when the rest of it is copied. Returns at once."""
        self._files.submit(partial(self._finish, log))

    def copy_new_lines(self) -> None:
        """Copies the lines appended since the last call, unless it is still doing that. Returns at once."""
        if not self._copying:
            self._copying = True
            self._files.submit(self._copy_all)

    def finish(self) -> None:
        """Copies the rest of all logs. Returns at once."""
        for log in list(self._followed):
            self.unfollow(log)

    def _copy_all(self) -> None:
        try:
            until = time.monotonic() + COPY_S
            for log in list(self._followed):
                while self._copy(log) and time.monotonic() < until:
                    pass
        finally:
            self._copying = False

    def _finish(self, log: FollowedLog) -> None:
        if log not in self._followed:
            return
        self._followed.discard(log)
        while self._copy(log):  # at most `MAX_LAG`: what writes it has ended
            pass
        if log.rest:
            self._write(log.worker_id, [log.rest])

    def _copy(self, log: FollowedLog) -> bool:
        """Copies a part; says whether there was any. What a full disk does not take is copied when it has room."""
        self._write(log.worker_id, [])
        if (left_out := size(log.path) - log.offset - MAX_LAG) > 0:
            log.offset += left_out
            note = f"... {left_out:,} bytes are left out here; they are in {log.path}"
            self._write(log.worker_id, [*filter(None, [log.rest]), note.encode()])
            log.rest = b""
        data = read_from(log.path, log.offset)
        log.offset += len(data)
        *lines, log.rest = (log.rest + data).split(b"\n")
        if len(log.rest) > _LINE:
            lines, log.rest = [*lines, log.rest], b""
        self._write(log.worker_id, lines)
        return bool(data)

    def _write(self, worker_id: str, lines: list[bytes]) -> None:
        prefix = f"[{worker_id}] ".encode()
        self._unwritten += b"".join(prefix + line + b"\n" for line in lines)
        while self._unwritten:
            self._unwritten = self._unwritten[self._file.write(self._unwritten) :]
