"""Runs as they lie on disk: which there are, which one is meant, its state, its events, and who holds its lock.

A run is named by path, by `experiment/trial`, by run id, or is the newest. It writes nothing and asks no guard.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from rolecall.cli.client import RunClient
from rolecall.cli.terminal import remark
from rolecall.errors import ProtocolError, RolecallError, WorkerConfigurationError
from rolecall.guard.sweep import run_processes
from rolecall.protocol.message import from_json
from rolecall.protocol.state import RunState
from rolecall.scheduler.run import private_root
from rolecall.transport.address import listens

DEFAULT_FILEROOT = Path("~/.rolecall")
FILES = (".lock", "state.json")  # one of them is in every run directory
_RUN_ID = re.compile(r"[0-9a-f]{4,64}")
_CLOCK_SLACK_S = 2.0  # start times count in ticks from a boot time in whole seconds


class BrokenStateError(RolecallError):
    """A run's `state.json` cannot be read."""

    def __init__(self, path: str, reason: str) -> None:
        self.path, self.reason = path, reason
        super().__init__(f"{path} cannot be read: {reason}; `rolecall logs` still works")


class RunNotFoundError(RolecallError):
    """No run matches `--run`, or there is none."""

    def __init__(self, wanted: str, fileroot: str, known: Iterable[str] = ()) -> None:
        self.wanted, self.fileroot, self.known = wanted, fileroot, list(known)
        what = f"no run {wanted!r}" if wanted else "no run"
        names = ", ".join(self.known)
        advice = f"known runs: {names}" if names else "pass its run directory with --run, or another --fileroot"
        super().__init__(f"{what} under {fileroot}; {advice}")


@dataclass(frozen=True)
class FoundRun:
    """A run of this user.

    Attributes:
        path: Its run directory `<fileroot>/<experiment>/<trial>`; None for a run of which only processes are left.
    """

    run_id: str
    runtime_dir: Path
    path: Path | None = None

    @classmethod
    def at(cls, path: Path) -> FoundRun:
        """The run of a run directory, with the facts of its `state.json`, if that can be read."""
        state = _known(path)
        # One that has not written its state yet is named by the file `run` of its runtime directory.
        owner = next((where for where, there in _run_directories().items() if there == path), private_root() / "none")
        runtime_dir = Path(state.runtime_dir) if state.runtime_dir else owner
        return cls(state.run_id or runtime_dir.name, runtime_dir, path)

    @property
    def name(self) -> str:
        return f"{self.path.parent.name}/{self.path.name}" if self.path else f"run {self.run_id}"

    @property
    def client(self) -> RunClient:
        return RunClient(self.runtime_dir)

    @property
    def state(self) -> RunState:
        """What its controller wrote last; an empty state where that cannot be read."""
        return _known(self.path) if self.path else RunState()

    @property
    def events(self) -> list[dict[str, Any]]:
        """What was reported of it, oldest first. A line that is still being written is skipped."""
        return list(_events(self.path)) if self.path else []

    @property
    def controller(self) -> int | None:
        """Pid of the controller while it lives on this host and has the run open, else None."""
        if self.path is None:
            return None
        lock, controller = self.path / ".lock", self.state.controller
        try:
            pid = int(lock.read_text().split()[0])
        except (OSError, ValueError, IndexError):
            return None
        ended = controller.ended and controller.pid == pid
        return pid if not ended and _holds(pid, lock) else None

    @property
    def running(self) -> bool:
        """True while the controller has the run's lock file open, or one of the run's guards listens."""
        client = self.client
        return self.controller is not None or any(listens(client.guard_socket(guard)) for guard in client.guard_ids())


def read_state(path: Path) -> RunState:
    """What the controller of a run directory wrote last; an empty state when it has written none yet.

    Raises:
        BrokenStateError: The file is no state of ours.
    """
    file = path / "state.json"
    try:
        state = from_json(RunState, file.read_bytes(), "the controller")
    except FileNotFoundError:
        return RunState()
    except (OSError, ProtocolError) as e:
        raise BrokenStateError(str(file), str(e)) from e
    if state.run_id and not _RUN_ID.fullmatch(state.run_id):
        raise BrokenStateError(str(file), f"run id {state.run_id!r} is none of ours")
    return state


def _known(path: Path) -> RunState:
    with suppress(BrokenStateError):
        return read_state(path)
    return RunState()


def _events(path: Path) -> Iterator[dict[str, Any]]:
    with suppress(OSError):
        for line in (path / "events.jsonl").read_text(errors="replace").splitlines():
            with suppress(ValueError):
                event = json.loads(line)
                if isinstance(event, dict):
                    yield event


def changed(path: Path) -> float:
    """When the controller of a run directory last began or wrote something there; 0 where there is none."""
    times = [0.0]
    for name in FILES:
        with suppress(OSError):
            times.append((path / name).stat().st_mtime)
    return max(times)


def root_of(fileroot: Path | None) -> Path:
    """The fileroot that is given, or the default one.

    Raises:
        WorkerConfigurationError: It is below a home that this user has not.
    """
    try:
        return (fileroot or DEFAULT_FILEROOT).expanduser().absolute()
    except (RuntimeError, FileNotFoundError) as e:
        raise WorkerConfigurationError("no place for the files of runs", str(e), "pass --fileroot") from e


def find_runs(fileroot: Path, *, elsewhere: bool = True) -> list[FoundRun]:
    """All runs under a fileroot, newest first; with `elsewhere` also the user's others that run on this host."""
    paths = {p.parent for name in FILES for p in fileroot.glob(f"*/*/{name}")}
    paths |= set(_run_directories().values()) if elsewhere else set()
    # Not those that this user may not look into.
    return [FoundRun.at(path) for path in sorted(filter(changed, paths), key=changed, reverse=True)]


def select_run(wanted: str | None, fileroot: Path | None) -> FoundRun:
    """The run that `wanted` names, or else the newest (of the fileroot that is given); which one goes to stderr.

    Also prints a message when its `state.json` cannot be read; the commands continue without it.

    Raises:
        RunNotFoundError: No run matches.
    """
    root = root_of(fileroot)
    if wanted is not None:
        found = _named(wanted, root)
    else:
        runs = find_runs(root, elsewhere=fileroot is None)
        if not runs:
            raise RunNotFoundError("", str(root))
        found = next((run for run in runs if run.running), runs[0])
        remark(f"{found.name} ({'running' if found.running else 'ended'}), {found.path}")
    if found.path is not None:
        try:
            read_state(found.path)
        except BrokenStateError as e:
            remark(str(e))
    return found


def _named(wanted: str, root: Path) -> FoundRun:
    if not wanted:  # an unset variable in a script must not select the newest run
        raise RunNotFoundError("", str(root))
    for path in (Path(wanted).expanduser().resolve(), root / wanted):
        if any((path / name).exists() for name in FILES):
            return FoundRun.at(path)
    runs = find_runs(root)
    of_experiment = [run for run in runs if run.path and wanted in (run.path.parent.name, run.name)]
    if of_experiment:
        return next((run for run in of_experiment if run.running), of_experiment[0])
    if found := next((run for run in runs if run.run_id == wanted), None):
        return found
    runtime_dir = private_root() / wanted
    if os.sep not in wanted and (runtime_dir.is_dir() or run_processes(wanted)):
        return FoundRun(wanted, runtime_dir)
    raise RunNotFoundError(wanted, str(root), [run.name for run in runs[:8]])


def _run_directories() -> dict[Path, Path]:
    """Run directories by runtime directory, of the runs of this user whose runtime directory still exists."""
    found = {}
    for file in private_root().glob("*/run"):
        with suppress(OSError):  # the run ended in the meantime
            found[file.parent] = Path(file.read_text())
    return found


def _holds(pid: int, lock: Path) -> bool:
    """True when a process has the lock file open. The lock itself is not tried: that could refuse a starting run."""
    try:
        wanted = lock.stat()
        for fd in os.scandir(f"/proc/{pid}/fd"):
            with suppress(FileNotFoundError):  # it was closed in the meantime
                if os.path.samestat(os.stat(fd.path), wanted):  # noqa: PTH116 - a link that only stat() follows
                    return True
        return False
    except PermissionError:
        # Its descriptors are hidden; it began before it wrote the lock, so the pid was not reused.
        with suppress(psutil.Error, OSError):
            return bool(psutil.Process(pid).create_time() <= lock.stat().st_mtime + _CLOCK_SLACK_S)
        return False
    except OSError:
        return False


def on_another_host(host: str) -> bool:
    """Whether a host, as a run's state names it, is another one than this. It names none before anybody was there."""
    return host not in ("", os.uname().nodename)


def age(moment: float) -> float:
    """Seconds since a moment of the wall clock."""
    return max(0.0, time.time() - moment)
