"""`rolecall logs`: prints and follows the logs of a run, merged or of some workers."""

from __future__ import annotations

import errno
import os
import re
import stat
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Annotated, BinaryIO, NamedTuple

import typer

from rolecall.cli.runs import FoundRun, RunNotFoundError, select_run
from rolecall.cli.terminal import FilerootOption, JsonOption, RunOption, print_json, remark
from rolecall.errors import RolecallError, printable
from rolecall.scheduler.echo import prefix_of, takes_colours
from rolecall.scheduler.run import EARLIER, earlier_runs

POLL_S = 0.2
CHECK_ENDED_EVERY = 10  # polls
MERGED = "merged.log"
_WORKER_LOG = re.compile(r"(?P<role>.+)-(?P<index>\d+)\.log")
_GUARD_LOG = re.compile(r"guard-(?P<id>g.*)\.log")
_MERGED_LINE = re.compile(r"\[(?P<worker>[^]\s]+/\d+)\] ?(?P<text>.*)", re.DOTALL)
BLOCK = 1 << 16
FURTHEST = 64 << 20  # so far back last lines are looked for: a sparse log may claim any size and hold none


class Line(NamedTuple):
    """A line without its newline, and the log that it comes from (a worker's id, or `guard g0`)."""

    source: str
    text: str


class NoLogError(RolecallError):
    """The run has no log of that role or worker."""

    def __init__(self, wanted: str, known: list[str]) -> None:
        self.wanted, self.known = wanted, known
        super().__init__(f"no log of {wanted!r} (logs: {', '.join(known) or 'none yet'})")


def logs(
    target: Annotated[str | None, typer.Argument(metavar="[ROLE[/I]]", help="A role, a worker, or `guard`.")] = None,
    run: RunOption = None,
    fileroot: FilerootOption = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Print what is appended, until the run ends.")] = False,
    tail: Annotated[int, typer.Option("--tail", "-n", min=0, help="Number of last lines to print of each log.")] = 100,
    earlier: Annotated[int, typer.Option(min=0, help="Of the run before the latest (1), before that (2), ...")] = 0,
    whole: Annotated[bool, typer.Option("--all", help="Print the logs from their beginning.")] = False,
    json: JsonOption = False,
) -> None:
    """Prints the logs of a run, of a role or of a worker, also after the run has ended.

    A trial may have run several times; without --earlier it is the latest run. With -f it follows new workers and
    rotated files, until Ctrl-C or the end of the run. With --json every line is an object with `source` and `line`.

    Example: rolecall logs -f actor/0
    """
    found = select_run(run, fileroot)
    if found.path is None:
        raise RunNotFoundError(found.run_id, "any known fileroot (only processes of the run are left)")
    runs = earlier_runs(found.path)
    if earlier > len(runs):
        wanted = f"{earlier} before the latest (the trial ran {len(runs) + 1} time(s))"
        raise RunNotFoundError(wanted, str(found.path), map(str, range(1, len(runs) + 1)))
    if earlier:
        found = FoundRun.at(found.path / EARLIER / str(runs[-earlier]))
    reader = _Reader(found, target, json)
    reader.begin(None if whole else tail, follow=follow)
    if follow:
        reader.follow()
    reader.end()


class _Reader:
    """Prints the lines of the selected logs."""

    def __init__(self, run: FoundRun, target: str | None, as_json: bool) -> None:
        self._run, self._target, self._json = run, target, as_json
        self._folder = (run.path or run.runtime_dir) / "logs"
        self._prefix = target is None or "/" not in target
        self._colours, self._terminal = takes_colours(sys.stdout), sys.stdout.isatty()
        self._followers = Followers(self.files)

    def files(self) -> dict[str, Path]:
        """The selected logs by source."""
        if self._target is None:
            return {MERGED: self._folder / MERGED}
        sources = _sources(self._folder).items()
        return {s: path for s, path in sources if self._target in (s, s.rpartition("/")[0], s.partition(" ")[0])}

    def begin(self, tail: int | None, *, follow: bool) -> None:
        """Prints the last lines.

        Raises:
            NoLogError: There is no such log; with `follow`, only if the run has ended.
        """
        if not self.files() and not (follow and self._run.running):
            raise NoLogError(str(self._target), list(_sources(self._folder)))
        for line in self._followers.last(tail):
            self._print(line)
        if self._target is None:
            self._warn_if_merge_is_behind()

    def follow(self) -> None:
        """Prints what is appended until the run has ended."""
        for poll in count(1):
            running = poll % CHECK_ENDED_EVERY != 0 or self._run.running
            for line in self._followers.lines():  # after the check, so that no line is missed when the run has ended
                self._print(line)
            if not running:
                break
            time.sleep(POLL_S)
        remark(f"{self._run.name} has ended")

    def end(self) -> None:
        """Prints incomplete last lines, as a killed worker may leave them."""
        for line in self._followers.end():
            self._print(line)

    def _print(self, line: Line) -> None:
        source, text = _split(line)
        if self._json:
            print_json({"source": source, "line": text}, indent=None)
        else:
            prefix = prefix_of(source, self._colours) if self._prefix and source != MERGED else ""
            sys.stdout.write(f"{prefix}{printable(text) if self._terminal else text}\n")
            sys.stdout.flush()

    def _warn_if_merge_is_behind(self) -> None:
        """A guard that was killed has not merged the last lines."""
        merged = _written(self._folder / MERGED)
        late = [name for name, path in _sources(self._folder).items() if "/" in name and _written(path) > merged + 1]
        if merged and late:
            remark(f"the merged log ends before the logs of {', '.join(late)}; see `rolecall logs {late[0]}`")


def _sources(folder: Path) -> dict[str, Path]:
    """The logs of workers (`actor/0`) and guards (`guard g0`) in a folder."""
    found = []
    for path in folder.glob("*.log"):
        if guard := _GUARD_LOG.fullmatch(path.name):
            found.append((path.name, 0, f"guard {guard['id']}", path))
        elif worker := _WORKER_LOG.fullmatch(path.name):
            found.append((worker["role"], int(worker["index"]), f"{worker['role']}/{worker['index']}", path))
    return {name: path for _, _, name, path in sorted(found)}


def _regular(path: str, flags: int) -> int:
    """Opens a regular file: no link, which may lead to what its maker could not read, and no FIFO, which may hang."""
    if not stat.S_ISREG(os.lstat(path).st_mode):
        raise FileNotFoundError(errno.ENOENT, "not a regular file", path)
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)


def _written(path: Path) -> float:
    """When a log was last written; 0 when nothing is in it, or it was rotated in the meantime."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return 0.0
    return found.st_mtime if found.st_size else 0.0


def _split(line: Line) -> tuple[str, str]:
    """The source and the text of a line; lines of the merged log begin with their source."""
    if line.source == MERGED and (match := _MERGED_LINE.fullmatch(line.text)):
        return match["worker"], match["text"]
    return line


def last_lines(file: BinaryIO, count: int | None) -> list[str]:
    """The last complete lines of a file, all when `count` is None; the file is left positioned after them."""
    end, size = file.seek(0, os.SEEK_END), BLOCK
    while True:  # read rather than mapped: whoever cuts a mapped file ends its reader
        start = 0 if count is None else max(0, end - size)
        file.seek(start)
        text = file.read(end - start)
        if not start or text.count(b"\n") > (count or 0) or size >= FURTHEST:
            break
        size = min(size * 8, FURTHEST)
    text = text[: text.rfind(b"\n") + 1]
    file.seek(start + len(text))
    lines = text.decode(errors="replace").split("\n")[:-1]
    return lines if count is None else lines[max(0, len(lines) - count) :]


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
            self._file = self._file or open(self._path, "rb", opener=_regular)  # noqa: SIM115 - closed by `close`
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
