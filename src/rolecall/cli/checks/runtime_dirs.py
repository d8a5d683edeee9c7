"""The runtime directories in the temporary directory: owner, permissions, and which are left over."""

from __future__ import annotations

import os
import shlex
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from rolecall.cli.checks import listed
from rolecall.cli.rundir import age
from rolecall.guard.claims import abandoned
from rolecall.guard.sweep import run_processes
from rolecall.placement.outside import Finding, error, ok, warning
from rolecall.scheduler.run import private_root
from rolecall.transport.address import listens

CHECK = "runtime directories"
SHOWN = 8
YOUNG_S = 60.0  # a run that is starting creates its directory before it has a process


def check_runtime_dirs(root: Path | None = None) -> Iterator[Finding]:
    """The private root and all runtime directories in it."""
    root = root or private_root()
    if not root.exists() and not root.is_symlink():
        yield ok(CHECK, f"{root} does not exist yet")
        return
    findings = list(_root(root))
    if not findings:
        living = {item.run_id for item in run_processes()}
        for directory in sorted(root.iterdir()):
            with suppress(FileNotFoundError):  # its run has ended in the meantime
                findings += [*_secrecy(directory), *_staleness(directory, living)]
    yield from findings or [ok(CHECK, f"{root} is private and contains nothing left over")]


def _root(root: Path) -> Iterator[Finding]:
    found = root.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        advice = "no run can start until it is removed (by its owner, or root) or TMPDIR names another directory"
        yield error(CHECK, f"{root} is not a directory of this user", advice, _rm(root))


def _secrecy(directory: Path) -> Iterator[Finding]:
    for path, allowed in ((directory.parent, 0o700), (directory, 0o700), (directory / "token", 0o600)):
        try:
            mode = stat.S_IMODE(path.lstat().st_mode)
        except FileNotFoundError:
            continue
        if mode & ~allowed:
            seen = f"{path} has mode {mode:04o}; other users may access the run's token or sockets"
            yield error(CHECK, seen, f"set it to {allowed:04o}", f"chmod {allowed:o} {shlex.quote(str(path))}")


def _staleness(directory: Path, living: set[str]) -> Iterator[Finding]:
    if abandoned(directory):
        left = [item.describe() for item in run_processes(directory.name, runtime_dir=directory)]
        seen = f"{directory} is left over, its controller and guards were killed; of their processes: "
        stop = f"rolecall stop --run {directory.name} --yes"
        yield warning(CHECK, seen + (listed(left, SHOWN) or "none"), "end and remove it", stop, directory.name)
        return
    sockets = [*directory.glob("*.sock"), *directory.glob("w/*.sock")]
    young = age(directory.lstat().st_mtime) < YOUNG_S
    if young or directory.name in living or any(listens(str(path)) for path in sockets):
        return
    seen = f"{directory} is left over: no process listens on its sockets or has its run id"
    yield warning(CHECK, seen, "remove it", _rm(directory))


def _rm(path: Path) -> str:
    return f"rm -r {shlex.quote(str(path))}"
