"""Nothing that a stranger or a broken peer sends brings the listener down or disturbs the other connections."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import msgspec
import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rolecall.errors import ProtocolError
from rolecall.transport.client import Client
from rolecall.transport.frames import MAGIC, pack
from rolecall.transport.loop import IOThread
from rolecall.transport.peer import Peer
from rolecall.transport.session import messages
from tests.transport.rpc_program import TOKEN, Running, running

FUZZ = settings(
    derandomize=True,
    deadline=None,
    max_examples=150,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
GROWTH = 64 << 20

any_value = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.binary(max_size=50) | st.text(),
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=20,
)
broken_prefix = st.builds(
    lambda header, count, total, rest: struct.pack("!4sIIQ", MAGIC, header, count, total) + rest,
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**64 - 1),
    st.binary(max_size=300),
)
framed = st.builds(
    lambda value, buffers: b"".join(pack(msgspec.msgpack.encode(value), buffers)),
    any_value,
    st.lists(st.binary(max_size=100), max_size=4),
)
message = st.builds(
    lambda tag, fields: b"".join(pack(msgspec.msgpack.encode([tag, *fields]))),
    st.integers(0, 10),
    st.lists(st.integers(0, 5) | st.lists(st.integers(0, 9), max_size=3) | any_value, max_size=8),
)
http_bytes = st.builds(
    lambda line, headers, body: line + b"\r\n" + b"".join(h + b"\r\n" for h in headers) + b"\r\n" + body,
    st.sampled_from([b"GET / HTTP/1.1", b"POST /echo HTTP/1.1", b"PUT /data/%ff HTTP/1.0", b"GET http://[/ HTTP/1.1"])
    | st.binary(max_size=60),
    st.lists(
        st.sampled_from(
            [
                b"Host: localhost",
                f"Authorization: Bearer {TOKEN}".encode(),
                b"Authorization: Bearer \xff\xfe",
                b"Content-Length: 5",
                b"Content-Length: -1",
                b"Transfer-Encoding: chunked",
                b"Expect: 100-continue",
                b"Connection: Upgrade",
            ]
        )
        | st.binary(max_size=40),
        max_size=6,
    ),
    st.binary(max_size=200),
)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("s") / "s.sock") as program:
        yield program


@pytest.fixture(scope="module")
def bystander(program: Running) -> Iterator[Client]:
    """A connection that nothing may disturb."""
    with IOThread() as io, Client(Peer("program", loop=io.loop), program.addresses, TOKEN) as client:
        client.peer.request("echo", 1, timeout=10).result()
        yield client


@pytest.fixture(scope="module")
def memory(program: Running, bystander: Client) -> int:
    bystander.peer.request("echo", b"x" * 1_000_000).result()
    return int(psutil.Process(program.process.pid).memory_info().rss)


def throw(path: Path, data: bytes) -> bytes:
    """Sends `data`, hangs up the sending side, and returns whatever comes back."""
    answer = b""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock, contextlib.suppress(ConnectionError):
        sock.settimeout(20)
        sock.connect(str(path))
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        while part := sock.recv(65536):
            answer += part
    return answer


def hello(session: str) -> bytes:
    return b"".join(pack(msgspec.msgpack.encode([TOKEN.encode(), [session]])))


def undisturbed(program: Running, bystander: Client, memory: int) -> None:
    link = bystander.peer.link
    assert bystander.peer.request("echo", 1, timeout=20).result() == 1
    assert bystander.peer.link is link
    assert program.process.poll() is None
    assert psutil.Process(program.process.pid).memory_info().rss < memory + GROWTH


@FUZZ
@given(data=st.binary(max_size=400) | broken_prefix | framed | st.builds(lambda b: MAGIC + b, st.binary()))
def test_strangers_bytes_do_no_harm(program: Running, bystander: Client, memory: int, data: bytes) -> None:
    """Anything before the token: refused or ignored, and the token is not in the answer."""
    assert TOKEN.encode() not in throw(program.path, data)
    undisturbed(program, bystander, memory)


@FUZZ
@given(frames=st.lists(broken_prefix | framed | message, min_size=1, max_size=5))
def test_a_broken_peer_loses_only_its_connection(
    program: Running, bystander: Client, memory: int, frames: list[bytes]
) -> None:
    """Anything behind a right hello."""
    throw(program.path, hello("fuzz") + b"".join(frames))
    undisturbed(program, bystander, memory)


@FUZZ
@given(data=http_bytes)
def test_http_of_any_shape_does_no_harm(program: Running, bystander: Client, memory: int, data: bytes) -> None:
    """Each answer is HTTP, and the token is not in it."""
    answer = throw(program.path, data)
    assert answer == b"" or answer.startswith(b"HTTP/1.1 ") or MAGIC in data[:4]
    assert TOKEN.encode() not in answer
    undisturbed(program, bystander, memory)


@FUZZ
@given(data=st.binary(max_size=200) | st.builds(msgspec.msgpack.encode, any_value))
def test_a_header_is_a_message_or_a_protocol_error(data: bytes) -> None:
    """Decoding raises nothing else."""
    with contextlib.suppress(ProtocolError):
        messages.decode(data)


def test_an_oversize_hello_is_refused_before_it_is_read(program: Running, bystander: Client, memory: int) -> None:
    """The announced length is enough."""
    assert b"limit 4096" in throw(program.path, struct.pack("!4sIIQ", MAGIC, 5000, 0, 0))
    undisturbed(program, bystander, memory)


def test_silent_strangers_do_not_lock_others_out(program: Running, bystander: Client, memory: int) -> None:
    """Connections without a hello are bounded: the oldest make room for the next, and attached peers go on."""
    strangers = []
    for _ in range(300):
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.connect(str(program.path))
        strangers.append(sock)
    strangers[0].settimeout(5)  # before the time for a hello is over
    assert strangers[0].recv(1) == b""
    undisturbed(program, bystander, memory)
    with IOThread() as io, Client(Peer("program", loop=io.loop), program.addresses, TOKEN) as client:
        assert client.peer.request("echo", 1, timeout=20).result() == 1
    for sock in strangers:
        sock.close()


def test_a_wrong_token_is_answered_with_the_sentence(program: Running) -> None:
    """Before anything behind the token is parsed."""
    frame = b"".join(pack(msgspec.msgpack.encode([b"wrong", msgspec.Raw(b"\x90")])))
    answer = throw(program.path, frame)
    assert b"Authorization: Bearer" in answer and TOKEN.encode() not in answer
