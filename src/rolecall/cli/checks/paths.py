"""Directories: socket paths that are too long, permissions of the fileroot, free space, clock of the file system."""

from __future__ import annotations

import os
import shlex
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from rolecall.cli.checks import judged
from rolecall.cli.terminal import format_bytes
from rolecall.guard.runtime import worker_socket
from rolecall.placement.outside import Finding, Severity, error, info, ok, warning
from rolecall.scheduler.run import private_root

CHECK = "paths"
SOCKET_PATH = 107  # sun_path holds 108 bytes with its NUL
RUN_ID_LENGTH = 12
LONGEST_ROLE = 63
LITTLE_ROOM = 1 << 30
CLOCK_SKEW_S = 2.0


def check_paths(fileroot: Path) -> Iterator[Finding]:
    """Socket paths, then the fileroot."""
    yield socket_room(private_root())
    yield from _fileroot(fileroot)


def socket_room(root: Path) -> Finding:
    """How long a role's name may be so that the path of its worker's socket is still valid."""
    longest = worker_socket(str(root / ("0" * RUN_ID_LENGTH)), "/999")
    room = SOCKET_PATH - len(os.fsencode(longest))
    seen = f"sockets in {root}/ leave {room} bytes for a role's name"
    advice = "the path of a Unix socket holds 107 bytes; set TMPDIR to a shorter path"
    severity = Severity.ERROR if room < 16 else Severity.INFO if room < LONGEST_ROLE else Severity.OK
    return judged(CHECK, seen, severity, advice, "export TMPDIR=/tmp")


def _fileroot(root: Path) -> Iterator[Finding]:
    there = next(path for path in (root, *root.parents) if os.access(path, os.F_OK))
    try:
        tempfile.TemporaryDirectory(dir=there, prefix=".doctor-").cleanup()
    except OSError as e:
        seen = f"a run cannot write in {root}: {e.strerror}"
        yield error(CHECK, seen, "choose another with fileroot=", f"ls -ld {shlex.quote(str(there))}")
        return
    if there != root:
        yield ok(CHECK, f"{root} does not exist yet; the first run creates it")
        return
    yield permissions(root, root.stat())
    yield _room(root)
    yield _clock(root)


def permissions(root: Path, found: os.stat_result) -> Finding:
    """Other users must not be able to write there (they could forge logs and state), nor, preferably, to read."""
    mode = stat.S_IMODE(found.st_mode)
    seen, command = f"{root} has mode {mode:04o}", f"chmod 700 {shlex.quote(str(root))}"
    if found.st_uid != os.getuid():
        return warning(CHECK, f"{root} belongs to uid {found.st_uid}", "choose a directory of your own with fileroot=")
    if mode & 0o022:
        return error(CHECK, seen, "other users can write there and forge the state of runs; make it private", command)
    if mode & 0o055:
        return info(CHECK, seen, "other users can read the logs of your runs; make it private if that matters", command)
    return ok(CHECK, seen)


def _room(root: Path) -> Finding:
    space = os.statvfs(root)
    free = space.f_bavail * space.f_frsize
    command = f"du -sh {shlex.quote(str(root))}/*/*"
    seen = f"{root} has {format_bytes(free)} free"
    return judged(CHECK, seen, free < LITTLE_ROOM, "logs and checkpoints need space", command)


def _clock(root: Path) -> Finding:
    """Compares this host's clock with that of the file system, which for a shared one is the file server's."""
    with tempfile.NamedTemporaryFile(dir=root, prefix=".clock-") as file:
        skew = os.fstat(file.fileno()).st_mtime - time.time()
    seen = f"the clock of {root} is {skew:+.1f} s off this host's clock"
    advice = "times in logs and ages of files are wrong; synchronize the clocks"
    return judged("clock", seen, abs(skew) > CLOCK_SKEW_S, advice, "timedatectl status")
