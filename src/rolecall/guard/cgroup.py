"""A cgroup of a guard's own, where this user may make one: whatever is started below the guard stays in it.

Nothing depends on it. It finds what bears no mark of a run and has lost its parents.
"""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from rolecall.guard.proc import identify, read_text, send

PROCS = "cgroup.procs"
# v2, beside v1 or alone; then the hierarchy of v1 that limits nothing.
_MOUNTED = ("/sys/fs/cgroup/unified", "/sys/fs/cgroup", "/sys/fs/cgroup/freezer")
_POLL_S = 0.01


def make(name: str) -> str:
    """Makes a cgroup below the one of this process; returns its path, or "" where that is not allowed."""
    for place in _own():
        with suppress(OSError):
            (place / name).mkdir()
            return str(place / name)
    return ""


def enter(path: str | Path) -> bool:
    """Moves this process, which has one thread, into a cgroup."""
    try:
        Path(path, PROCS).write_text("0")
    except OSError:
        return False
    return True


def pids(path: str | Path) -> set[int]:
    """The processes of a cgroup and of those below it."""
    return set().union(*map(_listed, _groups(Path(path))))


def end(path: str, timeout: float) -> bool:
    """Kills what is in a cgroup and removes it, with those below it; False when something outlives that."""
    group, deadline = Path(path), time.monotonic() + timeout
    while True:
        try:
            (group / "cgroup.kill").write_text("1")
        except OSError:  # v1, or a kernel before 5.14
            for process in filter(None, map(identify, pids(group))):
                send(process, signal.SIGKILL)
        for place in sorted(_groups(group), reverse=True):
            with suppress(OSError):  # it is not empty yet
                place.rmdir()
        if not group.is_dir() or time.monotonic() > deadline:
            return not group.is_dir()
        time.sleep(_POLL_S)


def _own() -> Iterator[Path]:
    """The cgroups that list this process, wherever a namespace lets the path begin."""
    paths = {line.split(":", 2)[2].strip("/") for line in read_text("/proc/self/cgroup").splitlines()}
    for place in (Path(mount, path) for mount in _MOUNTED for path in {*paths, ""}):
        if os.getpid() in _listed(place):
            yield place


def _groups(path: Path) -> list[Path]:
    """A cgroup and those below it."""
    try:
        return [file.parent for file in path.rglob(PROCS)]
    except OSError:  # one was removed meanwhile
        return [place for place in (path,) if place.is_dir()]


def _listed(place: Path) -> set[int]:
    return set(map(int, read_text(place / PROCS).split()))
