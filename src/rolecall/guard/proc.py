"""Processes in `/proc`, and signals that cannot reach another process that reuses a pid. It keeps no state."""

import os
import signal
import time
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

TICKS = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")
_LOOKS = 10  # at most, where something forks without end


class Process(NamedTuple):
    """The identity of a process: a pid may be reused, a pid with its start time (ticks since boot) is not."""

    pid: int
    start: int


class Stat(NamedTuple):
    """One line of `/proc/<pid>/stat`.

    Attributes:
        cpu: Ticks of all threads, ended ones too.
        rss: Bytes.
        stack: Where its stack begins, which only running another program changes; 0 when it may not be read.
    """

    pid: int
    name: str
    state: str
    ppid: int
    session: int
    cpu: int
    start: int
    rss: int
    stack: int

    @property
    def process(self) -> Process:
        return Process(self.pid, self.start)

    @property
    def dead(self) -> bool:
        return self.state in "ZX"


def read_stat(pid: int) -> Stat | None:
    """Reads one process, or None when there is none of that pid."""
    try:
        with open(f"/proc/{pid}/stat", "rb", buffering=0) as file:  # noqa: PTH123  (pathlib triples the cost of a scan)
            text = file.read().decode(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    left, right = text.index("("), text.rindex(")")  # the name may hold spaces and brackets
    f = text[right + 2 :].split()
    cpu, rss = int(f[11]) + int(f[12]), int(f[21]) * PAGE
    return Stat(pid, text[left + 1 : right], f[0], int(f[1]), int(f[3]), cpu, int(f[19]), rss, int(f[25]))


def read_text(path: str | Path) -> str:
    """The text of a small file, of the kernel for instance; empty where it cannot be read."""
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""


def identify(pid: int) -> Process | None:
    """The process that has this pid now."""
    stat = read_stat(pid)
    return stat.process if stat else None


def numeric_entries(folder: str) -> list[int]:
    """The numeric names of a directory of `/proc`: pids, threads, descriptors."""
    return [int(name) for name in os.listdir(folder) if name.isdigit()]  # noqa: PTH208  (as above)


def open_descriptors() -> set[int]:
    """The descriptors of this process."""
    listed = numeric_entries("/proc/self/fd")  # one of them is the listing's own, closed by now
    return {number for number in listed if os.path.lexists(f"/proc/self/fd/{number}")}


def snapshot() -> dict[int, Stat]:
    """All processes of the host by pid.

    One that forks and ends while we look may be missed, with its child, which was not listed. So what was forked since
    is read as well, and again what has lost its parent.
    """
    stats: dict[int, Stat] = {}
    listed: set[int] = set()
    for _ in range(_LOOKS):
        fresh = set(numeric_entries("/proc")) - listed
        again = {pid for pid, stat in stats.items() if stat.ppid and stat.ppid not in stats}
        if not fresh | again:
            break
        listed |= fresh
        for pid in fresh | again:
            if stat := read_stat(pid):
                stats[pid] = stat
            else:
                stats.pop(pid, None)
    return stats


def descendants_of(roots: Iterable[int], stats: dict[int, Stat]) -> set[int]:
    """The descendants of the roots in `stats`, without the roots."""
    children: dict[int, list[int]] = {}
    for stat in stats.values():
        children.setdefault(stat.ppid, []).append(stat.pid)
    found: set[int] = set()
    queue = deque(roots)
    while queue:
        for child in children.get(queue.popleft(), ()):
            if child not in found:
                found.add(child)
                queue.append(child)
    return found


def ancestors(pid: int, stats: dict[int, Stat]) -> set[int]:
    """The pid and its ancestors."""
    found: set[int] = set()
    while pid in stats and pid not in found:
        found.add(pid)
        pid = stats[pid].ppid
    return found


def environ(pid: int) -> dict[str, str]:
    """The environment of a process at its exec; empty if it cannot be read or has ended."""
    try:
        with open(f"/proc/{pid}/environ", "rb", buffering=0) as file:  # noqa: PTH123
            raw = file.read()
    except OSError:
        return {}
    # A value that was overwritten in place ends at its first NUL; what is left of the old one has no "=".
    pairs = (item.partition("=") for item in raw.decode(errors="surrogateescape").split("\0") if "=" in item)
    return {name: value for name, _, value in pairs}


def kill_below(timeout: float) -> list[Stat]:
    """Kills the running descendants of this process, those that they fork meanwhile included; returns all it found."""
    found: dict[Process, Stat] = {}
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        stats = snapshot()
        running = [stats[pid] for pid in descendants_of([os.getpid()], stats) if not stats[pid].dead]
        found |= {stat.process: stat for stat in running}
        if all(of_another_user(stat.process) for stat in running):
            break
        for stat in running:
            send(stat.process, signal.SIGKILL)
        time.sleep(0.002)
    return list(found.values())


def alive(process: Process) -> bool:
    """True while it runs; False for a zombie."""
    stat = read_stat(process.pid)
    return stat is not None and stat.start == process.start and not stat.dead


def of_another_user(process: Process) -> bool:
    """Whether this user may not signal it: it has changed its user."""
    try:
        _signal(process, 0)
    except OSError as e:
        return isinstance(e, PermissionError)
    return False


def send(process: Process, number: int) -> bool:
    """Sends a signal to exactly this process. Returns False if it has ended or may not be signalled."""
    try:
        _signal(process, number)
    except OSError:
        return False
    return True


def _signal(process: Process, number: int) -> None:
    pidfd = os.pidfd_open(process.pid)
    try:
        # Read after pidfd_open: the same start time means that the pidfd refers to this process.
        if identify(process.pid) != process:
            raise ProcessLookupError
        signal.pidfd_send_signal(pidfd, number)
    finally:
        os.close(pidfd)
