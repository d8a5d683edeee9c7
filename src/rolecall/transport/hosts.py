"""Identifies hosts. Processes with the same identity share `/proc`, pids, and sockets in the file system."""

from __future__ import annotations

import functools
import hashlib
import os
import socket
from pathlib import Path

NAMESPACES = ("mnt", "net", "pid")


@functools.cache
def this_host() -> str:
    """The identity of this host: its boot and the namespaces of this process, not its name.

    Two containers of one machine are two hosts, since one cannot reach the files and processes of the other.
    """
    parts = [Path("/proc/sys/kernel/random/boot_id").read_text().strip(), str(os.getuid())]
    parts += [str(Path(f"/proc/self/ns/{name}").stat().st_ino) for name in NAMESPACES]
    return hashlib.blake2s(" ".join(parts).encode(), digest_size=12).hexdigest()


def address_toward(host: str) -> str:
    """This host's own address on the route to another one. Nothing is sent.

    Raises:
        OSError: There is no route to it, or no such host.
    """
    family, _, _, _, where = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect(where)
        return str(probe.getsockname()[0])
