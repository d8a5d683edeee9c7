"""Reads log files line by line: the last lines, then what is appended, across rotation and new files."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

BLOCK = 1 << 16


class Line(NamedTuple):
    """A line without its newline, and the log that it comes from (a worker's id, or `guard g0`)."""

    source: str
    text: str


def last_lines(file: BinaryIO, count: int | None) -> list[str]:
    """The last complete lines of a file, all when `count` is None; the file is left positioned after them."""
    end = file.seek(0, os.SEEK_END)
    whole, newline, rest = _tail_bytes(file, end, count).rpartition(b"\n")
    file.seek(end - len(rest))
    lines = whole.split(b"\n") if newline else []
    kept = lines if count is None else lines[-count:] if count else []
    return [line.decode(errors="replace") for line in kept]


def _tail_bytes(file: BinaryIO, end: int, count: int | None) -> bytes:
    """The end of a file, long enough to hold `count` complete lines and an incomplete one."""
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


class Follower:
    """Follows one file, also when it is replaced (rotated) or truncated."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: BinaryIO | None = None
        self._rest = b""

    def last(self, count: int | None) -> list[str]:
        """The last lines. Call it before `lines`, which yields only what is appended after that."""
        return last_lines(self._file, count) if self._open() and self._file is not None else []

    def lines(self) -> Iterator[str]:
        """The complete lines appended since the last call."""
        if self._file is None and not self._open():
            return
        yield from self._read()
        if self._replaced():
            yield from self.flush()
            self.close()
            if self._open():
                yield from self._read()

    def flush(self) -> Iterator[str]:
        """The last line, if it has no newline yet."""
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
            self._file = self._path.open("rb")
        except FileNotFoundError:
            return False
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
            found = self._path.stat()
        except FileNotFoundError:
            return False  # moved away, and not yet replaced
        return (found.st_dev, found.st_ino) != (opened.st_dev, opened.st_ino)


class Followers:
    """Follows all files that `find` returns; files that appear later are read from their beginning."""

    def __init__(self, find: Callable[[], dict[str, Path]]) -> None:
        self._find = find
        self._followers: dict[str, Follower] = {}

    def last(self, count: int | None) -> Iterator[Line]:
        """The last lines of each."""
        for name, path in self._find().items():
            self._followers[name] = Follower(path)
            for text in self._followers[name].last(count):
                yield Line(name, text)

    def lines(self) -> Iterator[Line]:
        """The complete lines appended to any file since the last call."""
        for name, path in self._find().items():
            follower = self._followers.setdefault(name, Follower(path))
            for text in follower.lines():
                yield Line(name, text)

    def end(self) -> Iterator[Line]:
        """The remaining lines, including last lines without a newline."""
        yield from self.lines()
        for name, follower in self._followers.items():
            for text in follower.flush():
                yield Line(name, text)
            follower.close()
