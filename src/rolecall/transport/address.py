"""Addresses as text, `unix:/path` and `tcp:host:port`, connecting to them, and the identity of a host."""

from __future__ import annotations

import asyncio
import functools
import hashlib
import os
import socket
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from rolecall.errors import ProtocolError


@dataclass(frozen=True)
class Address:
    """Where something listens: a Unix socket's `path`, or `host` and `port`."""

    path: str = ""
    host: str = ""
    port: int = 0

    @property
    def is_unix(self) -> bool:
        return bool(self.path)

    def __str__(self) -> str:
        return f"unix:{self.path}" if self.path else f"tcp:{self.host}:{self.port}"


def parse(text: str) -> Address:
    """Parses an address; raises ProtocolError for anything else."""
    kind, _, rest = text.partition(":")
    if kind == "unix" and rest:
        return Address(path=rest)
    host, _, port = rest.rpartition(":")
    if kind == "tcp" and host and port.isascii() and port.isdigit() and 0 < int(port) < 65536:
        return Address(host=host.strip("[]"), port=int(port))
    raise ProtocolError("bad address, use unix:/path or tcp:host:port", text)


def listens(path: str) -> bool:
    """Whether a process listens on a Unix socket: one that lives never refuses, since the kernel accepts for it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError:
            return True  # a full backlog, for instance
    return True


def dial_host(text: str, timeout: float) -> None:
    """Sees that somebody listens at `host:port`.

    Raises:
        ValueError: The text is no such address.
        OSError: Nobody answers there.
    """
    host, _, port = text.rpartition(":")
    if "://" in text or not host or not port.isdigit():
        raise ValueError("an address is host:port, and this host must be a node of the cluster")
    socket.create_connection((host.strip("[]"), int(port)), timeout).close()


async def dial(address: Address, loop: asyncio.AbstractEventLoop) -> socket.socket:
    """Opens a non-blocking connection.

    Raises:
        OSError: Nobody listens there.
    """
    if address.is_unix:
        return await _connect(socket.AF_UNIX, address.path, loop)
    error: OSError | None = None
    found = await loop.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    for family, _, _, _, sockaddr in found:
        try:
            return await _connect(family, sockaddr, loop)
        except OSError as e:
            error = e
    raise error or OSError(f"{address.host} has no address")


async def _connect(family: int, sockaddr: str | tuple[object, ...], loop: asyncio.AbstractEventLoop) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        if family == socket.AF_UNIX:
            await loop.sock_connect(sock, sockaddr)
        else:
            await _connect_tcp(sock, sockaddr, loop)
    except BaseException:
        sock.close()
        raise
    return sock


async def _connect_tcp(
    sock: socket.socket, sockaddr: str | tuple[object, ...], loop: asyncio.AbstractEventLoop
) -> None:
    """As `loop.sock_connect`. uvloop's has threads of libuv resolve even a number, and libuv aborts if it gets none."""
    with suppress(BlockingIOError):
        sock.connect(sockaddr)
    connected = loop.create_future()
    loop.add_writer(sock, lambda: None if connected.done() else connected.set_result(None))
    try:
        await connected
    finally:
        loop.remove_writer(sock)
    if number := sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
        raise OSError(number, os.strerror(number))


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
