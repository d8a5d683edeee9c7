"""`rolecall logs`: prints and follows the logs of a run, merged or of some workers."""

from __future__ import annotations

import re
import sys
import time
from itertools import count
from pathlib import Path
from typing import Annotated

import typer

from rolecall.cli.follow import Followers, Line
from rolecall.cli.runs import FoundRun, RunNotFoundError, select_run
from rolecall.cli.terminal import FilerootOption, JsonOption, RunOption, print_json, remark
from rolecall.errors import RolecallError
from rolecall.scheduler.echo import prefix_of, takes_colours
from rolecall.scheduler.run import EARLIER, earlier_runs

POLL_S = 0.2
CHECK_ENDED_EVERY = 10  # polls
MERGED = "merged.log"
_WORKER_LOG = re.compile(r"(?P<role>.+)-(?P<index>\d+)\.log")
_GUARD_LOG = re.compile(r"guard-(?P<id>g.*)\.log")
_MERGED_LINE = re.compile(r"\[(?P<worker>[^]\s]+/\d+)\] ?(?P<text>.*)", re.DOTALL)


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
        self._colours = takes_colours(sys.stdout)
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
            sys.stdout.write(f"{prefix}{text}\n")
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
