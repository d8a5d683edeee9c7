"""Evidence that the kernel killed a process because memory ran out: counters that rose. It kills nothing."""

import os
import time
from pathlib import Path, PurePath

from rolecall.guard.proc import PAGE, read_text

_V1 = "/sys/fs/cgroup/memory{}/memory.oom_control"
_V2 = "/sys/fs/cgroup{}/memory.events"
_LIMITS = {_V1: "/sys/fs/cgroup/memory{}/memory.limit_in_bytes", _V2: "/sys/fs/cgroup{}/memory.max"}
_UNLIMITED = 1 << 60
FRESH_S = 3.0  # an earlier kill is not attributed to a death


def _cgroup_files() -> list[tuple[str, str]]:
    """Counter and limit files of our own memory cgroup, v2 or v1; those of the next one above that counts."""
    found = []
    for line in read_text("/proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        pattern = _V2 if not controllers else _V1 if "memory" in controllers.split(",") else ""
        for place in (str(place).rstrip("/") for place in (PurePath(path), *PurePath(path).parents)):
            if pattern and Path(pattern.format(place)).exists():
                found.append((pattern.format(place), _LIMITS[pattern].format(place)))
                break
    return found


def _count(text: str) -> int:
    return sum(int(line.split()[1]) for line in text.splitlines() if line.startswith("oom_kill "))


class OomWatch:
    """Counts the kernel's out-of-memory kills and attributes each to one death that follows closely."""

    def __init__(self) -> None:
        files = _cgroup_files()
        self._counters = [counter for counter, _ in files] + ["/proc/vmstat"]
        limits = [int(text) for _, limit in files if (text := read_text(limit).strip()).isdigit()]
        self.limit = min([value for value in limits if value < _UNLIMITED] + [os.sysconf("SC_PHYS_PAGES") * PAGE])
        self._seen = self._now()
        self._unclaimed = 0
        self._rose_at = 0.0

    def _now(self) -> list[int]:
        return [_count(read_text(path)) for path in self._counters]

    def look(self) -> None:
        """Compares the counters. The same kill moves the group's counter and the host's, so the largest rise counts."""
        now = self._now()
        rise = max(new - old for new, old in zip(now, self._seen, strict=True))
        self._seen = now
        if rise > 0:
            expired = time.monotonic() - self._rose_at > FRESH_S
            self._unclaimed = rise if expired else self._unclaimed + rise
            self._rose_at = time.monotonic()

    def claim(self) -> bool:
        """True if a death by SIGKILL just now can be attributed to an out-of-memory kill, which is then used up."""
        self.look()
        if self._unclaimed < 1 or time.monotonic() - self._rose_at > FRESH_S:
            return False
        self._unclaimed -= 1
        return True

    def explain(self, rss: int) -> str:
        """The likely cause of a death by SIGKILL."""
        return f"likely out of memory: {rss / 2**30:.1f} GiB seen last, limit {self.limit / 2**30:.1f} GiB"
