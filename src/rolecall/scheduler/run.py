"""One run's names, directories and token. It creates them and takes them away; it starts nothing."""

from __future__ import annotations

import fcntl
import itertools
import os
import secrets
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path

from rolecall.errors import WorkerConfigurationError, remedy
from rolecall.guard.claims import claim, write_private
from rolecall.guard.proc import read_text
from rolecall.protocol.message import to_json
from rolecall.protocol.state import RunState
from rolecall.transport.files import DIRECTORY_MODE, make_directories, opener, private_opener
from rolecall.transport.forked import close_in_forks
from rolecall.types import check_name

EARLIER = "earlier"  # directory of the run directory: earlier runs of the trial, by number
STOPPED = "stopped"  # file of the run directory, in which `rolecall stop` says who it is
FILES = ("state.json", "events.jsonl", "logs", "stacks", STOPPED)
ROOTS = 20  # names that are tried for the directory in the temporary one


class Run:
    """The run's directory (logs, state; stays) and its private runtime directory (sockets, token; goes).

    Attributes:
        run_id: Marks every process of the run in its environment.
        token: 256 random bits; whoever shows them is of this run.
        run_dir: `<fileroot>/<experiment>/<trial>/`. A trial without a name is called after the time it began.
        runtime_dir: `<tmp>/rolecall-<uid>/<run_id>/`, mode 0700; short, since a Unix path holds 107 bytes.
        pid: The controller's process.
        closing: The run is being ended, or has ended.
    """

    def __init__(
        self, experiment: str, trial: str | None, fileroot: str | os.PathLike[str] | None, scheduler: str = ""
    ) -> None:
        self.scheduler, self.pid, self.closing = scheduler, os.getpid(), False
        self.experiment = check_name("experiment", experiment)
        self._named = trial is not None
        self.trial = check_name("trial", trial if trial is not None else time.strftime("%Y%m%d-%H%M%S"))
        self.run_id = secrets.token_hex(6)
        self.token = secrets.token_hex(32)
        self._root = _root(fileroot)
        self.runtime_dir = private_root() / self.run_id
        self._lock: FileIO | None = None

    def __repr__(self) -> str:
        return f"Run({self.experiment}/{self.trial}, id={self.run_id})"

    def open(self) -> None:
        """Makes both directories.

        Raises:
            WorkerConfigurationError: Another living run has this experiment and trial; or nothing can be written there.
        """
        with _written(self.run_dir, "pass fileroot=, a directory that this user can write to"):
            self._make_run_dir()
        with _written(self.runtime_dir, "set TMPDIR to a directory that this user can write to"):
            _make_private(self.runtime_dir.parent)
            self.runtime_dir.mkdir(mode=0o700)
            claim(self.runtime_dir)
            write_private(self.runtime_dir / "run", str(self.run_dir), "x")  # so that the command line finds it
            write_private(self.runtime_dir / "token", self.token, "x")

    @property
    def run_dir(self) -> Path:
        return self._root / self.experiment / self.trial

    @property
    def controller_socket(self) -> Path:
        return self.runtime_dir / "controller.sock"

    def check_owned(self) -> None:
        """Raises WorkerConfigurationError in a forked child: a byte from it would break its parent's connections."""
        if os.getpid() != self.pid:
            what = f"this process was forked from the controller, process {self.pid}"
            raise WorkerConfigurationError(what, None, "only the process that made a scheduler can use it")

    def check_usable(self) -> None:
        """Raises WorkerConfigurationError where nothing can be started or called any more."""
        self.check_owned()
        if self.closing:
            what = f"the run {self.experiment}/{self.trial} has ended"
            raise WorkerConfigurationError(what, None, "use a scheduler and its roles inside the `with` block")

    def check_startable(self) -> None:
        """Raises WorkerConfigurationError where nothing can be started any more."""
        self.check_usable()
        if by := self.stopped_by():
            what = f"the run {self.experiment}/{self.trial} was stopped by {by}"
            raise WorkerConfigurationError(what, None, "end this scheduler and make another one")

    def stopped_by(self) -> str:
        """Who stopped the run from outside, as its file says; or ""."""
        return read_text(self.run_dir / STOPPED)

    def write_state(self, state: RunState) -> None:
        """Replaces `state.json`, whole or not at all. One writer at a time."""
        self.write("state.json.new", to_json(state, indent=1))
        (self.run_dir / "state.json.new").replace(self.run_dir / "state.json")

    def write(self, name: str, text: str, mode: str = "w") -> None:
        """Writes a file of the run directory, or with mode `a` at its end."""
        with open(self.run_dir / name, mode, opener=opener) as file:
            file.write(text)

    def close(self) -> None:
        """Removes the runtime directory. The run directory stays."""
        shutil.rmtree(self.runtime_dir, ignore_errors=True)
        if self._lock is not None:
            self._lock.close()

    def _make_run_dir(self) -> None:
        if not self._named:
            self._choose_trial()
        make_directories(self.run_dir)
        self._take_lock()
        self._put_away()
        for part in ("logs", "stacks"):
            (self.run_dir / part).mkdir(mode=DIRECTORY_MODE)

    def _put_away(self) -> None:
        """What an earlier run of the trial has left goes to `earlier/<number>`, laid out as a run directory."""
        if left := [path for name in FILES if (path := self.run_dir / name).exists()]:
            place = self.run_dir / EARLIER / str(max(earlier_runs(self.run_dir), default=0) + 1)
            make_directories(place)
            for path in left:
                path.rename(place / path.name)

    def _choose_trial(self) -> None:
        """A time is no name: two runs may begin in the same second, and clocks are set back."""
        begun = self.trial
        make_directories(self.run_dir.parent)
        for number in itertools.count(2):
            try:
                return self.run_dir.mkdir(mode=DIRECTORY_MODE)
            except FileExistsError:
                self.trial = f"{begun}-{number}"

    def _take_lock(self) -> None:
        lock = FileIO(self.run_dir / ".lock", "a+", opener=private_opener)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as e:
            lock.seek(0)
            holder = (lock.read(32) or b"").decode(errors="replace").strip()
            lock.close()
            what = f"{self.experiment}/{self.trial} is running in process {holder or 'unknown'}"
            raise WorkerConfigurationError(what, None, "end that run, or choose another trial") from e
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n".encode())
        close_in_forks(lock)
        self._lock = lock


@contextmanager
def _written(folder: Path, advice: str) -> Iterator[None]:
    try:
        yield
    except OSError as e:
        what = f"files of a run cannot be written in {folder}"
        raise WorkerConfigurationError(what, e.strerror, remedy(e) or advice) from e


def _root(fileroot: str | os.PathLike[str] | None) -> Path:
    try:
        return (Path(fileroot) if fileroot is not None else Path.home() / ".rolecall").absolute()
    except (RuntimeError, FileNotFoundError) as e:  # no HOME and no such user; no current folder
        raise WorkerConfigurationError("no place for the run's files", str(e), "pass an absolute fileroot") from e


def earlier_runs(run_dir: Path) -> list[int]:
    """Numbers of the earlier runs of a trial, oldest first."""
    return sorted(int(path.name) for path in (run_dir / EARLIER).glob("*") if path.name.isdecimal())


def private_root() -> Path:
    """`<tmp>/rolecall-<uid>`, where this user's runtime directories are.

    Where another user has put something there, it is the first of `rolecall-<uid>-1` and so on that is not taken.
    """
    try:
        tmp = Path(tempfile.gettempdir() if len(tempfile.gettempdir()) < 40 else "/tmp")
    except FileNotFoundError as e:  # none can be written to
        advice = "make room in /tmp, or set TMPDIR"
        raise WorkerConfigurationError("no place for the sockets of runs", e.strerror, advice) from e
    names = [f"rolecall-{os.getuid()}", *(f"rolecall-{os.getuid()}-{number}" for number in range(1, ROOTS))]
    return next((tmp / name for name in names if _may_be_ours(tmp / name)), tmp / names[0])


def _may_be_ours(root: Path) -> bool:
    try:
        found = root.lstat()
    except FileNotFoundError:
        return True
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()


def _make_private(root: Path) -> None:
    """Makes the root, ours alone."""
    with suppress(FileExistsError):
        root.mkdir(mode=0o700)
    if not _may_be_ours(root):
        what = f"{root} and {ROOTS - 1} others like it belong to another user"
        raise WorkerConfigurationError(what, None, "remove them, or set TMPDIR to a directory of this user")
    root.chmod(0o700)
