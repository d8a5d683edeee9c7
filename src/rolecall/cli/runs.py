"""Finds runs and selects one: by path, by `experiment/trial`, by run id, or the newest. It only reads."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from rolecall.cli.client import RunClient
from rolecall.cli.rundir import BrokenStateError, RunDir
from rolecall.cli.terminal import remark
from rolecall.errors import RolecallError
from rolecall.guard.sweep import run_processes
from rolecall.protocol.state import RunState
from rolecall.scheduler.run import private_root
from rolecall.transport.address import listens

DEFAULT_FILEROOT = Path("~/.rolecall")


class RunNotFoundError(RolecallError):
    """No run matches `--run`, or there is none."""

    def __init__(self, wanted: str, fileroot: str, known: Iterable[str] = ()) -> None:
        self.wanted, self.fileroot, self.known = wanted, fileroot, list(known)
        what = f"no run {wanted!r}" if wanted else "no run"
        names = ", ".join(self.known)
        advice = f"known runs: {names}" if names else "pass its run directory with --run, or another --fileroot"
        super().__init__(f"{what} under {fileroot}; {advice}")


@dataclass(frozen=True)
class SelectedRun:
    """The run that a command works on. `directory` is None for a run of which only processes are left."""

    run_id: str
    runtime_dir: Path
    directory: RunDir | None = None

    @property
    def name(self) -> str:
        return self.directory.name if self.directory else f"run {self.run_id}"

    @property
    def client(self) -> RunClient:
        return RunClient(self.runtime_dir)

    @property
    def state(self) -> RunState:
        """What its controller wrote last; an empty state where that cannot be read."""
        return self.directory.known() if self.directory else RunState()

    @property
    def controller(self) -> int | None:
        """As `RunDir.controller`."""
        return self.directory.controller() if self.directory else None


def find_runs(fileroot: Path, *, elsewhere: bool = True) -> list[RunDir]:
    """All runs under a fileroot, newest first; with `elsewhere` also the user's others that run on this host."""
    paths = {p.parent for name in (".lock", "state.json") for p in fileroot.glob(f"*/*/{name}")}
    paths |= set(_run_directories().values()) if elsewhere else set()
    runs = [run for run in map(RunDir, paths) if run.changed()]  # not those that this user may not look into
    return sorted(runs, key=RunDir.changed, reverse=True)


def select_run(wanted: str | None, fileroot: Path | None) -> SelectedRun:
    """The run that `wanted` names, or else the newest (of the fileroot that is given); which one goes to stderr.

    Raises:
        RunNotFoundError: No run matches.
    """
    root = (fileroot or DEFAULT_FILEROOT).expanduser().absolute()
    if wanted is not None:
        return _checked(_named(wanted, root))
    runs = find_runs(root, elsewhere=fileroot is None)
    if not runs:
        raise RunNotFoundError("", str(root))
    run = next((run for run in runs if is_running(run)), runs[0])
    remark(f"{run.name} ({'running' if is_running(run) else 'ended'}), {run.path}")
    return _checked(selected(run))


def _checked(found: SelectedRun) -> SelectedRun:
    """Prints a message when `state.json` cannot be read; the commands continue without it."""
    if found.directory is not None:
        try:
            found.directory.state()
        except BrokenStateError as e:
            remark(str(e))
    return found


def selected(run: RunDir) -> SelectedRun:
    """A run with the facts of its `state.json`, if that can be read."""
    state = run.known()
    runtime_dir = Path(state.runtime_dir) if state.runtime_dir else _runtime_dir_of(run)
    return SelectedRun(state.run_id or runtime_dir.name, runtime_dir, run)


def is_running(run: RunDir) -> bool:
    """True while the controller has the run's lock file open, or one of the run's guards listens."""
    client = selected(run).client
    return run.controller() is not None or any(listens(client.guard_socket(guard)) for guard in client.guard_ids())


def _named(wanted: str, root: Path) -> SelectedRun:
    if not wanted:  # an unset variable in a script must not select the newest run
        raise RunNotFoundError("", str(root))
    for path in (Path(wanted).expanduser().resolve(), root / wanted):
        if RunDir(path).exists():
            return selected(RunDir(path))
    runs = find_runs(root)
    of_experiment = [run for run in runs if wanted in (run.path.parent.name, run.name)]
    if of_experiment:
        return selected(next(filter(is_running, of_experiment), of_experiment[0]))
    if found := next((found for found in map(selected, runs) if found.run_id == wanted), None):
        return found
    runtime_dir = private_root() / wanted
    if os.sep not in wanted and (runtime_dir.is_dir() or run_processes(wanted)):
        return SelectedRun(wanted, runtime_dir)
    raise RunNotFoundError(wanted, str(root), [run.name for run in runs[:8]])


def _runtime_dir_of(run: RunDir) -> Path:
    """For a run that has not written its state yet: the runtime directory whose file `run` names it."""
    return next((where for where, path in _run_directories().items() if path == run.path), private_root() / "none")


def _run_directories() -> dict[Path, Path]:
    """Run directories by runtime directory, of the runs of this user whose runtime directory still exists."""
    found = {}
    for file in private_root().glob("*/run"):
        with suppress(OSError):  # the run ended in the meantime
            found[file.parent] = Path(file.read_text())
    return found
