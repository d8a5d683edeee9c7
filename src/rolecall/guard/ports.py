"""Leases ports of this host, across all runs of all users on it.

Byte N of one lock file stands for port N, and an open-file-description lock on the byte is the lease. The kernel drops
the locks with the process, so nothing is ever stale, and two guards can never hold the same port. Where another user
has made the file unusable, or holds locks on all of it, the user's own file takes its place.
"""

import errno
import fcntl
import os
import socket
import stat
import struct
import zlib
from collections.abc import Iterable, Sequence
from itertools import chain, islice
from pathlib import Path

from rolecall.errors import PortAllocationError
from rolecall.guard.proc import read_text

LOCK_FILE = Path("/tmp/rolecall-ports.lock")
LOWEST = 20000  # below live the well-known services, and Ray's workers (10002 to 19999)
HIGHEST = 65535
_ENOUGH = 1000  # ports that a range outside the ephemeral one must have to be used
_FLOCK = "@hhqqi4x"  # struct flock: type, whence, start, length, pid (0 for locks of the open file)


def _read_ints(path: str, default: str) -> list[tuple[int, int]]:
    text = read_text(path).strip() or default
    parts = [part.split("-") for part in text.replace("\t", "-").split(",") if part]
    return [(int(part[0]), int(part[-1])) for part in parts]


def ephemeral() -> tuple[int, int]:
    """The range from which the kernel assigns ports to outgoing connections."""
    return _read_ints("/proc/sys/net/ipv4/ip_local_port_range", "32768-60999")[0]


def lease_range(ephemeral: tuple[int, int]) -> tuple[int, int]:
    """The ports to lease from: below the kernel's ephemeral range, else above it, else among it.

    From the ephemeral range the kernel gives ports to outgoing connections and to `bind(0)`, so a port from there could
    be taken between its lease and its use.
    """
    low, high = ephemeral
    if low - LOWEST >= _ENOUGH:
        return LOWEST, low - 1
    return (high + 1, HIGHEST) if HIGHEST - high >= _ENOUGH else (LOWEST, HIGHEST)


def open_lock_file(path: Path = LOCK_FILE) -> int:
    """Opens the file that all users of the host share. It is never written, and a link in its place is refused."""
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        fd = os.open(path, flags)
    except FileNotFoundError:
        # Separate calls: with fs.protected_regular the kernel refuses O_CREAT on another user's file in /tmp.
        try:
            fd = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o666)
            os.fchmod(fd, 0o666)  # whatever the umask: other users must be able to lock it
        except FileExistsError:
            fd = os.open(path, flags)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, f"{path} is not a regular file; remove it")
    return fd


def bindable(port: int) -> bool:
    """True if a listener could bind the port on every address."""
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            with socket.socket(family, socket.SOCK_STREAM) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                probe.bind(("", port))
        except OSError as error:
            if error.errno in (errno.EADDRINUSE, errno.EACCES):
                return False  # anything else means that the host lacks this address family
    return True


class PortLeases:
    """The leases of one guard.

    Args:
        seed: Decides where the search begins, so that different runs seldom try the same ports.
        own: The user's own lock file, if there may be one.
        path: The lock file of all users.
        span: First and last port, for tests; the kernel's settings decide otherwise.
    """

    def __init__(
        self, seed: str, own: Path | None = None, *, path: Path = LOCK_FILE, span: tuple[int, int] | None = None
    ) -> None:
        self.low, self.high = span or lease_range(ephemeral())
        self._reserved = _read_ints("/proc/sys/net/ipv4/ip_local_reserved_ports", "")
        self._next = zlib.crc32(seed.encode()) % (self.high - self.low + 1)
        self._own = own
        self._files: list[int] = []  # locks are taken in the last one
        try:
            self._files.append(open_lock_file(path))
        except OSError:
            if not self._fall_back():
                raise
        self._held: dict[str, set[int]] = {}

    def lease(self, owner: str, count: int, wanted: Sequence[int] = ()) -> list[int]:
        """Leases `count` ports, all or none.

        Args:
            wanted: Taken first, where they are free.

        Raises:
            PortAllocationError: Fewer are free.
        """
        taken = list(islice(filter(self._take, chain(wanted, self._candidates())), count))
        if len(taken) < count and self._fall_back():
            free = filter(self._take, self._candidates())
            taken += islice((port for port in free if port not in taken), count - len(taken))
        if len(taken) < count:
            for port in taken:
                self._lock(port, fcntl.F_UNLCK)
            raise PortAllocationError(count, self.low, self.high, f"{len(taken)} were free")
        self._held.setdefault(owner, set()).update(taken)
        return taken

    def _fall_back(self) -> bool:
        """Goes over to the user's own file; False if that was done before."""
        own, self._own = self._own, None
        if own is not None:
            self._files.append(open_lock_file(own))
        return own is not None

    def _candidates(self) -> Iterable[int]:
        size = self.high - self.low + 1
        for _ in range(size):
            port = self.low + self._next
            self._next = (self._next + 1) % size
            if not any(first <= port <= last for first, last in self._reserved):
                yield port

    def _take(self, port: int) -> bool:
        if any(port in ports for ports in self._held.values()):
            return False  # the kernel would grant this process's own lock again
        if not self._lock(port, fcntl.F_WRLCK):
            return False
        if bindable(port):
            return True
        self._lock(port, fcntl.F_UNLCK)
        return False

    def _lock(self, port: int, kind: int) -> bool:
        try:
            for file in self._files if kind == fcntl.F_UNLCK else self._files[-1:]:
                fcntl.fcntl(file, fcntl.F_OFD_SETLK, struct.pack(_FLOCK, kind, os.SEEK_SET, port, 1, 0))
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):
                return False
            raise
        return True

    def held(self) -> list[int]:
        """The ports of all owners."""
        return sorted(port for ports in self._held.values() for port in ports)

    def release(self, owner: str) -> list[int]:
        """Releases all ports of an owner. Call it when the processes that used them have ended."""
        ports = sorted(self._held.pop(owner, ()))
        for port in ports:
            self._lock(port, fcntl.F_UNLCK)
        return ports

    def close(self) -> None:
        """Releases all ports. May be called twice."""
        self._held.clear()
        while self._files:
            os.close(self._files.pop())
