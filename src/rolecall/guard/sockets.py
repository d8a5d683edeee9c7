"""Listeners on TCP ports, from `/proc`: the socket's inode, and the processes that hold it."""

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from rolecall.guard.proc import numeric_entries

_LISTEN = "0A"


def listener_inodes(port: int, pid: int) -> set[str]:
    """Inodes of the sockets that listen on a port in the network namespace of a process."""
    found = set()
    for name in ("tcp", "tcp6"):
        try:
            lines = Path(f"/proc/{pid}/net/{name}").read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            if fields[3] == _LISTEN and int(fields[1].rpartition(":")[2], 16) == port:
                found.add(fields[9])
    return found


def holders(inodes: set[str], pids: Iterable[int]) -> set[int] | None:
    """The pids that hold one of the sockets; None if the descriptors of a process cannot be read."""
    wanted = {f"socket:[{inode}]" for inode in inodes}
    found = set()
    for pid in pids:
        folder = f"/proc/{pid}/fd"
        try:
            for number in numeric_entries(folder):
                with suppress(FileNotFoundError):
                    # A path object for each descriptor doubles the cost.
                    if os.readlink(f"{folder}/{number}") in wanted:  # noqa: PTH115
                        found.add(pid)
        except FileNotFoundError:
            continue
        except PermissionError:
            return None
    return found
