"""What an attacker sends: plain HTTP and raw bytes, made by hand rather than by the code under attack."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import struct
import time
from http.client import HTTPConnection
from typing import Any, NamedTuple

import msgspec

PREFIX = struct.Struct("!4sIIQ")
PATIENCE_S = 20.0
SENTENCE = "send it as `Authorization: Bearer <token>`"  # what a listener answers to whoever has no token


def connect(address: str) -> socket.socket:
    """A connection to `unix:/path` or `tcp:host:port`."""
    kind, _, rest = address.partition(":")
    if kind == "unix":
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(PATIENCE_S)
        sock.connect(rest)
        return sock
    host, _, port = rest.rpartition(":")
    return socket.create_connection((host, int(port)), timeout=PATIENCE_S)


class Answer(NamedTuple):
    """An HTTP answer; `json` is its body's value, None when it has none."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class _Connection(HTTPConnection):
    def __init__(self, address: str) -> None:
        super().__init__("localhost", timeout=PATIENCE_S)
        self._address = address

    def connect(self) -> None:
        self.sock = connect(self._address)


def send_http(
    address: str,
    method: str,
    path: str,
    body: Any = None,
    *,
    token: str | None = None,
    headers: dict[str, str] | None = None,
) -> Answer:
    """One request over a connection of its own. A body that is not bytes is sent as JSON."""
    content = body if isinstance(body, bytes | None) else json.dumps(body).encode()
    sent = {**({"Authorization": f"Bearer {token}"} if token is not None else {}), **(headers or {})}
    connection = _Connection(address)
    try:
        connection.request(method, path, content, sent)
        response = connection.getresponse()
        found = {name.lower(): value for name, value in response.getheaders()}
        return Answer(response.status, found, response.read())
    finally:
        connection.close()


def exchange(address: str, data: bytes, *, patience: float = PATIENCE_S) -> bytes:
    """Sends bytes and returns all that comes until the other side hangs up.

    Raises:
        TimeoutError: It has not hung up within `patience` seconds.
    """
    with connect(address) as sock:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # refused before all was sent
            sock.sendall(data)
        return read_to_end(sock, patience)


def read_to_end(sock: socket.socket, patience: float = PATIENCE_S) -> bytes:
    deadline, found = time.monotonic() + patience, b""
    while True:
        sock.settimeout(max(0.01, deadline - time.monotonic()))
        try:
            data = sock.recv(65536)
        except ConnectionResetError:
            return found
        if not data:
            return found
        found += data


def frame(header: bytes, *buffers: bytes) -> bytes:
    """A frame as the wire has it."""
    lengths = b"".join(struct.pack("!Q", len(b)) for b in buffers)
    return (
        PREFIX.pack(b"RC01", len(header), len(buffers), sum(map(len, buffers))) + lengths + header + b"".join(buffers)
    )


def hello(token: bytes | str, session: str = "attacker", *more: Any) -> bytes:
    """The first frame of whoever dials. `more`: name, guard and run."""
    secret = token.encode() if isinstance(token, str) else token
    return frame(msgspec.msgpack.encode([secret, [session, *more]]))


def guard_hello(token: bytes | str, guard_id: str, run_id: str) -> bytes:
    """That of a guard."""
    return hello(token, "attacker", guard_id, {"id": guard_id}, run_id)


def request(
    seq: int, method: str, body: bytes, *buffers: bytes, kind: int = 0, meta: dict[str, Any] | None = None
) -> bytes:
    """A call (1 is the message's tag); `body` is what the codec would have written."""
    return frame(msgspec.msgpack.encode([1, seq, kind, method, meta or {}, 16, [], body]), *buffers)


def read_frame(sock: socket.socket) -> Any:
    """The header of the next frame, decoded."""
    _, header, count, total = PREFIX.unpack(_exactly(sock, PREFIX.size))
    lengths = _exactly(sock, 8 * count)
    head = _exactly(sock, header)
    _exactly(sock, total)
    assert len(lengths) == 8 * count
    return msgspec.msgpack.decode(head)


def _exactly(sock: socket.socket, size: int) -> bytes:
    found = b""
    while len(found) < size:
        data = sock.recv(size - len(found))
        if not data:
            raise ConnectionError(f"hung up after {len(found)} of {size} bytes")
        found += data
    return found


def frames_in(data: bytes) -> list[Any]:
    """The headers of the frames that these bytes are."""
    found = []
    while data:
        magic, header, count, total = PREFIX.unpack_from(data)
        assert magic == b"RC01", data[:80]
        start = PREFIX.size + 8 * count
        found.append(msgspec.msgpack.decode(data[start : start + header]))
        data = data[start + header + total :]
    return found


def statuses(data: bytes) -> list[int]:
    """The status codes of the HTTP answers that these bytes are."""
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d+) ", data)]
