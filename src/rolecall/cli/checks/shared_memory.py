"""/dev/shm: its size, and files of rolecall or torch that no process uses any more."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil

from rolecall.cli.rundir import age
from rolecall.cli.terminal import format_bytes
from rolecall.placement.outside import Finding, ok, warning

CHECK = "shared memory"
FOLDER = Path("/dev/shm")
SMALL = 1 << 30  # containers often have 64 MiB, too little for a data loader or NCCL
YOUNG_S = 60.0  # a file looks unused between its creation and its mapping
_OURS = re.compile(r"(rolecall|torch_)")


def check_shared_memory(folder: Path = FOLDER) -> Iterator[Finding]:
    """Size, then left-over files."""
    if not folder.is_dir():
        yield warning(CHECK, f"{folder} is missing", "torch and NCCL need it", f"sudo mount -t tmpfs tmpfs {folder}")
        return
    space = os.statvfs(folder)
    yield _size(folder, space.f_blocks * space.f_frsize, space.f_bavail * space.f_frsize)
    yield from _stale(folder)


def _size(folder: Path, total: int, free: int) -> Finding:
    seen = f"{folder} has {format_bytes(total)}, {format_bytes(free)} free"
    if total < SMALL:
        advice = "data loaders and NCCL need more; in a container pass --shm-size=8g"
        return warning(CHECK, seen, advice, f"sudo mount -o remount,size=8G {folder}")
    if free < total / 20:
        return warning(CHECK, seen, "check what fills it", f"ls -lS {folder} | head")
    return ok(CHECK, seen)


def _stale(folder: Path) -> Iterator[Finding]:
    candidates = {str(p): p for p in folder.iterdir() if _OURS.match(p.name) and _old(p)}
    stale = sorted(set(candidates) - in_use(candidates)) if candidates else []
    if stale:
        total = sum(candidates[path].lstat().st_size for path in stale)
        seen = f"{len(stale)} file(s) that no process of this user uses, {format_bytes(total)}: {', '.join(stale[:5])}"
        yield warning(CHECK, seen, "remove them", shlex.join(["rm", "--", *stale]))


def _old(path: Path) -> bool:
    try:
        found = path.lstat()
    except FileNotFoundError:
        return False
    return found.st_uid == os.getuid() and age(found.st_mtime) > YOUNG_S


def in_use(paths: dict[str, Path]) -> set[str]:
    """The paths that some process has mapped or open, as far as /proc is readable."""
    used: set[str] = set()
    for pid in psutil.pids():
        used |= paths.keys() & {*_mapped(pid), *opened(pid)}
    return used


def _mapped(pid: int) -> list[str]:
    try:
        lines = Path(f"/proc/{pid}/maps").read_text(errors="replace").splitlines()
    except OSError:
        return []
    return [line.split(maxsplit=5)[5] for line in lines if line.count(" ") >= 5 and "/" in line]


def opened(pid: int) -> list[str]:
    """What a process has open; nothing when it has ended or belongs to another user."""
    found = []
    with suppress(OSError):
        for name in os.listdir(f"/proc/{pid}/fd"):  # noqa: PTH208
            with suppress(FileNotFoundError):  # closed in the meantime, as that of this listing is
                found.append(os.readlink(f"/proc/{pid}/fd/{name}"))  # noqa: PTH115 - not all are paths
    return found
