"""Reads log files line by line: their last lines, and what is added, through rotation and new files."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, NamedTuple

BLOCK = 1 << 16


class Line(NamedTuple):
    """A line without its end, and the log that it is from (a worker's id, or `guard g0`)."""

    source: str
    text: str


def last_lines(path: Path, count: int | None) -> tuple[list[str], int]:
    """The last lines of a file (all when `count` is None) and the offset where they end.

    A last line without its end is left for later: its rest may still come.
    """
    try:
        with path.open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            data = _tail_bytes(file, end, count)
    except FileNotFoundError:
        return [], 0
    whole, newline, rest = data.rpartition(b"\n")
    lines = whole.split(b"\n") if newline else []
    kept = lines if count is None else lines[-count:] if count else []
    return [line.decode(errors="replace") for line in kept], end - len(rest)


def _tail_bytes(file: BinaryIO, end: int, count: int | None) -> bytes:
    """Enough of the end of a file to hold `count` whole lines and what comes after them."""
    if count is None:
        file.seek(0)
        return file.read(end)
    blocks: list[bytes] = []
    start, newlines = end, 0
    while start > 0 and newlines <= count:
        step = min(BLOCK, start)
        start -= step
        file.seek(start)
        blocks.append(file.read(step))
        newlines += blocks[-1].count(b"\n")
    return b"".join(reversed(blocks))


@dataclass
class Follower:
    """What is added to one file, also when it is replaced (rotated) or cut."""

    path: Path
    offset: int = 0
    _file: BinaryIO | None = field(default=None, repr=False)
    _rest: bytes = b""

    def lines(self) -> Iterator[str]:
        """The lines that have come since the last time."""
        if self._file is None and not self._open():
            return
        yield from self._read()
        if self._replaced():
            yield from self.flush()
            self.close()
            self.offset = 0
            if self._open():
                yield from self._read()

    def flush(self) -> Iterator[str]:
        """A last line without its end."""
        if self._rest:
            yield self._rest.decode(errors="replace")
            self._rest = b""

    def close(self) -> None:
        """May be called twice."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _open(self) -> bool:
        try:
            self._file = self.path.open("rb")
        except FileNotFoundError:
            return False
        self._file.seek(self.offset)
        return True

    def _read(self) -> Iterator[str]:
        assert self._file is not None
        while data := self._file.read(BLOCK):
            *lines, self._rest = (self._rest + data).split(b"\n")
            for line in lines:
                yield line.decode(errors="replace")

    def _replaced(self) -> bool:
        assert self._file is not None
        opened = os.fstat(self._file.fileno())
        if opened.st_size < self._file.tell():
            return True
        try:
            found = self.path.stat()
        except FileNotFoundError:
            return False  # moved away, its successor not made yet
        return (found.st_dev, found.st_ino) != (opened.st_dev, opened.st_ino)


class Followers:
    """Follows all files that `find` names, new ones from their beginning."""

    def __init__(self, find: Callable[[], dict[str, Path]], offsets: dict[str, int]) -> None:
        self._find = find
        self._followers = {name: Follower(path, offsets.get(name, 0)) for name, path in find().items()}

    def lines(self) -> Iterator[Line]:
        """What has come in all of them since the last time."""
        for name, path in self._find().items():
            follower = self._followers.setdefault(name, Follower(path))
            for text in follower.lines():
                yield Line(name, text)

    def end(self) -> Iterator[Line]:
        """The last lines that have no end, when nothing will be added any more."""
        for name, follower in self._followers.items():
            for text in follower.flush():
                yield Line(name, text)
            follower.close()
