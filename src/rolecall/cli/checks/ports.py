"""Ports: the range of the leases, their lock file, the ports leased now, and other listeners in the range."""

from __future__ import annotations

import fcntl
import os
import shlex
import stat
import struct
from collections.abc import Iterator
from pathlib import Path

import psutil

from rolecall.cli.checks import judged, listed
from rolecall.cli.checks.left_over import opened
from rolecall.guard.ports import LOCK_FILE, ephemeral, lease_range
from rolecall.guard.sweep import GUARD_NAME, run_processes
from rolecall.placement.outside import Finding, error, info, ok, warning

CHECK = "ports"
FEW = 1000
SHOWN = 6
_FLOCK = "@hhqqi4x"  # struct flock: type, whence, start, length, pid


def check_ports(lock_file: Path = LOCK_FILE) -> Iterator[Finding]:
    """Range, lock file, leases, other listeners."""
    low, high = ephemeral()
    first, last = lease_range((low, high))
    yield _range(first, last, low, high)
    yield from _lock_file(lock_file, first, last)
    yield from _other_listeners(first, last)


def _range(first: int, last: int, low: int, high: int) -> Finding:
    seen = f"range of the leases: {first}-{last}; the kernel's ephemeral range: {low}-{high}"
    crossing = first <= high and low <= last
    advice = "an outgoing connection can take a leased port; leave room below the ephemeral range"
    command = "sudo sysctl net.ipv4.ip_local_port_range='32768 60999'"
    few = last - first < FEW
    return judged(CHECK, seen, crossing or few, advice if crossing else f"fewer than {FEW} ports", command)


def _lock_file(path: Path, first: int, last: int) -> Iterator[Finding]:
    try:
        found = path.lstat()
    except FileNotFoundError:
        yield ok(CHECK, f"{path} does not exist yet; no port is leased")
        return
    remove = f"rm {shlex.quote(str(path))}"
    if not stat.S_ISREG(found.st_mode):
        yield error(CHECK, f"{path} is not a regular file; no port can be leased", "remove it", remove)
    elif not os.access(path, os.R_OK | os.W_OK):
        advice = "its owner must let all users lock it"
        yield error(CHECK, f"{path} may not be opened by this user", advice, f"sudo chmod 666 {shlex.quote(str(path))}")
    else:
        yield from _leases(path, first, last)


def _leases(path: Path, first: int, last: int) -> Iterator[Finding]:
    with path.open("r+b") as file:
        ports = leased(file.fileno(), first, last)
    if not ports:
        yield ok(CHECK, "no port is leased")
        return
    shown = listed(ports, SHOWN)
    known = {item.stat.pid for item in run_processes()}
    odd = [pid for pid in psutil.pids() if str(path) in opened(pid) and pid not in known and _name(pid) != GUARD_NAME]
    if odd:
        names = ", ".join(f"{pid} {_name(pid)}" for pid in odd)
        advice = "only guards hold leases; end the process, and the kernel releases the ports"
        yield warning(CHECK, f"{len(ports)} leased ({shown}), also held by {names}", advice, f"kill {odd[0]}")
    else:
        yield ok(CHECK, f"{len(ports)} leased by running guards: {shown}")


def leased(fd: int, first: int, last: int) -> list[int]:
    """The ports whose byte of the lock file another process has locked, found without locking any."""
    ports: list[int] = []
    todo = [(first, last)]
    while todo:
        low, high = todo.pop()
        if low > high:
            continue
        question = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, low, high - low + 1, 0)
        kind, _, start, length, _ = struct.unpack(_FLOCK, fcntl.fcntl(fd, fcntl.F_OFD_GETLK, question))
        if kind == fcntl.F_UNLCK:
            continue
        end = start + length - 1 if length else last
        ports += range(max(start, low), min(end, high) + 1)
        todo += [(low, start - 1), (end + 1, high)]
    return sorted(ports)


def _other_listeners(first: int, last: int) -> Iterator[Finding]:
    own = {item.stat.pid for item in run_processes()}
    listening = [c for c in psutil.net_connections("tcp") if c.status == psutil.CONN_LISTEN and c.pid not in own]
    others = sorted({(c.laddr.port, c.pid) for c in listening if first <= c.laddr.port <= last}, key=str)
    if others:
        shown = listed([f"{port} ({pid} {_name(pid)})" if pid else f"{port} (hidden)" for port, pid in others], SHOWN)
        advice = "harmless: leases avoid these ports; programs that start later should use ports outside the range"
        yield info(CHECK, f"{len(others)} listener(s) of other programs in the range: {shown}", advice)


def _name(pid: int) -> str:
    try:
        return str(psutil.Process(pid).name())
    except psutil.Error:
        return "?"
