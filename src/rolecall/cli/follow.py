"""Reads log files line by line: the last lines, then what is appended, across rotation and new files."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple

BLOCK = 1 << 16


class Line(NamedTuple):
    """A line without its newline, and the log that it comes from (a worker's id, or `guard g0`)."""

    source: str
    text: str


def last_lines(file: BinaryIO, count: int | None) -> list[str]:
    """The last complete lines of a file, all when `count` is None; the file is left positioned after them."""
    if not file.seek(0, os.SEEK_END):
        return []
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
        end = text.rfind(b"\n") + 1
        start = 0 if count is None else end
        for _ in range(min(count or 0, end)):
            start = text.rfind(b"\n", 0, max(start - 1, 0)) + 1
        file.seek(end)
        return text[start:end].decode(errors="replace").split("\n")[:-1]


class Follower:
    """Follows one file, also when it is replaced (rotated) or truncated."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: BinaryIO | None = None
        self._rest = b""

    def last(self, count: int | None) -> list[str]:
        """The last lines. Call it before `lines`, which yields only what is appended after that."""
        return last_lines(file, count) if (file := self._opened()) else []

    def lines(self) -> Iterator[str]:
        """The complete lines appended since the last call."""
        while file := self._opened():
            while data := file.read(BLOCK):
                *lines, self._rest = (self._rest + data).split(b"\n")
                yield from (line.decode(errors="replace") for line in lines)
            if not self._replaced(file):
                return
            yield from self.flush()
            self.close()

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

    def _opened(self) -> BinaryIO | None:
        with suppress(FileNotFoundError):
            self._file = self._file or self._path.open("rb")
        return self._file

    def _replaced(self, file: BinaryIO) -> bool:
        opened = os.fstat(file.fileno())
        try:
            found = self._path.stat()
        except FileNotFoundError:  # moved away, and not yet replaced
            return opened.st_size < file.tell()
        return opened.st_size < file.tell() or not os.path.samestat(found, opened)


class Followers:
    """Follows all files that `find` returns; files that appear later are read from their beginning."""

    def __init__(self, find: Callable[[], dict[str, Path]]) -> None:
        self._find = find
        self._followers: dict[str, Follower] = {}

    def last(self, count: int | None) -> Iterator[Line]:
        """The last lines of each."""
        for name, follower in self._found():
            yield from (Line(name, text) for text in follower.last(count))

    def lines(self) -> Iterator[Line]:
        """The complete lines appended to any file since the last call."""
        for name, follower in self._found():
            yield from (Line(name, text) for text in follower.lines())

    def end(self) -> Iterator[Line]:
        """The remaining lines, including last lines without a newline."""
        yield from self.lines()
        for name, follower in self._followers.items():
            yield from (Line(name, text) for text in follower.flush())
            follower.close()

    def _found(self) -> Iterator[tuple[str, Follower]]:
        for name, path in self._find().items():
            yield name, self._followers.setdefault(name, Follower(path))
