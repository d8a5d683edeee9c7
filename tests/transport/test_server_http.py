"""What the HTTP side of a listener promises: token first, then host and origin, then routes, then the body."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from rolecall.transport.http.messages import Disconnect, Parts, Response
from tests.transport.rpc_program import TOKEN, Running, running

METHODS = ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "REPORT", "RCX"]
PATHS = ["/health", "/echo", "/data/7", "/boom", "/unknown", "/", "/health/../x"]
AUTH = {"Authorization": f"Bearer {TOKEN}"}


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("s") / "s.sock") as program:
        yield program


class UnixConnection(http.client.HTTPConnection):
    """The standard library's client over a Unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=10)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(10)
        self.sock.connect(str(self._path))


def ask(
    program: Running, method: str, path: str, headers: dict[str, str] | None = None, body: bytes | None = None
) -> Response:
    return exchange(http.client.HTTPConnection("127.0.0.1", program.port, timeout=10), method, path, headers, body)


def exchange(
    connection: http.client.HTTPConnection,
    method: str,
    path: str,
    headers: dict[str, str] | None,
    body: bytes | None = None,
) -> Response:
    try:
        connection.request(method, path, body, headers or {})
        answer = connection.getresponse()
        return Response(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
    finally:
        connection.close()


def get(program: Running, path: str, headers: dict[str, str]) -> Response:
    return exchange(UnixConnection(program.path), "GET", path, headers)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("method", METHODS)
def test_without_the_token_every_method_and_route_is_401(program: Running, method: str, path: str) -> None:
    """Known or not; the body is a sentence that says what to do, and never the token."""
    for headers in (
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": f"Basic {TOKEN}"},
        {"Authorization": f"Bearer {TOKEN}x"},
        {"Authorization": TOKEN},
        {"Authorization": "Bearer "},
        {"Host": "evil.example", "Origin": "http://evil.example"},
    ):
        answer = ask(program, method, path, headers)
        assert answer.status == 401
        assert TOKEN.encode() not in answer.body + str(answer.headers).encode()
        if method != "HEAD":
            assert "Authorization: Bearer" in answer.json()["error"]


@pytest.mark.parametrize("path", PATHS)
def test_a_foreign_host_or_origin_is_403(program: Running, path: str) -> None:
    """Even with the token: a web page must not reach the run through a browser."""
    for headers in ({"Host": "evil.example"}, {"Host": "127.0.0.1.evil.example:80"}, {"Origin": "null"}):
        assert ask(program, "GET", path, {**AUTH, **headers}).status == 403
    assert get(program, path, {**AUTH, "Host": "evil.example"}).status == 403


def test_routes_answer_with_the_token(program: Running) -> None:
    """Path, query, parameters and body arrive; over TCP and over the Unix socket."""
    assert ask(program, "GET", "/health?a=1", AUTH).json() == {"status": "ok", "query": {"a": "1"}}
    assert get(program, "/health", AUTH).json()["status"] == "ok"
    assert ask(program, "PUT", "/data/a%2Fb", AUTH, b"x").json() == {"id": "a/b"}
    assert ask(program, "POST", "/echo", AUTH, b"x" * 500_000).body == b"x" * 500_000
    for host in ("localhost", "LOCALHOST:1", "[::1]:80"):
        assert ask(program, "GET", "/health", {**AUTH, "Host": host}).status == 200


def test_unknown_routes_and_methods_are_named(program: Running) -> None:
    """404 and 405 with a sentence; 405 lists what the path takes."""
    assert ask(program, "GET", "/unknown", AUTH).status == 404
    answer = ask(program, "PATCH", "/data/1", AUTH)
    assert answer.status == 405
    assert answer.headers["allow"] == "DELETE, PUT"


def test_a_large_body_is_refused_before_it_is_read(program: Running) -> None:
    """413, by the announced length and, chunked, by the bytes that come."""
    assert ask(program, "POST", "/echo", AUTH, b"x" * ((1 << 20) + 1)).status == 413
    with socket.create_connection(("127.0.0.1", program.port), timeout=10) as sock:
        head = f"POST /echo HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\n"
        sock.sendall(f"{head}Content-Length: 99999999999999\r\n\r\n".encode())
        assert sock.recv(4096).startswith(b"HTTP/1.1 413")
    with socket.create_connection(("127.0.0.1", program.port), timeout=10) as sock:
        sock.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
        chunk = b"10000\r\n" + b"x" * 65536 + b"\r\n"
        sock.sendall(chunk * 17)
        assert sock.recv(4096).startswith(b"HTTP/1.1 413")


def test_a_route_that_raises_is_500_without_the_token(program: Running) -> None:
    """An internal error with its type and text, no traceback, the token blotted out."""
    answer = ask(program, "POST", "/boom", AUTH)
    assert answer.status == 500
    assert answer.json()["error"].startswith("internal error (RuntimeError): it broke; ***")
    assert b"Traceback" not in answer.body and TOKEN.encode() not in answer.body


def test_what_is_no_http_is_400(program: Running) -> None:
    """A broken request is answered and the connection closed; without the token it is not even found to be broken."""
    shown = f"authorization: bearer {TOKEN}\r\n".encode()
    for junk in (b"\x00\x01\x02\r\n%b\r\n", b"GET\r\n%b\r\n", b"GET / HTTP/1.1\r\nbad header\r\n%b\r\n"):
        assert status_of(program, junk % shown) == 400
        assert status_of(program, junk % b"") == 401
    long = b"GET / HTTP/1.1\r\n%bx: " + b"y" * 40_000
    assert status_of(program, long % shown) in (400, 431)
    assert status_of(program, long % b"") == 401


def status_of(program: Running, data: bytes) -> int:
    with socket.create_connection(("127.0.0.1", program.port), timeout=10) as sock:
        sock.sendall(data)
        return int(sock.recv(4096)[9:12])


def test_a_connection_serves_many_requests(program: Running) -> None:
    """Keep-alive, also after 404, 405 and 500."""
    connection = UnixConnection(program.path)
    for path, status in [("/health", 200), ("/unknown", 404), ("/echo", 405), ("/health", 200)] * 5:
        connection.request("GET", path, headers=AUTH)
        answer = connection.getresponse()
        assert (answer.status, bool(answer.read())) == (status, True)
    connection.close()


def test_curl_works(program: Running) -> None:
    """With a body large enough that curl asks whether to go on."""
    command = ["curl", "-sS", "--unix-socket", str(program.path), "-H", "@-", "--data-binary", "x" * 100_000]
    done = subprocess.run(
        [*command, "http://localhost/echo"], input=f"Authorization: Bearer {TOKEN}\n", capture_output=True, text=True
    )
    assert done.stdout == "x" * 100_000, done.stderr


def test_the_socket_file_is_private(program: Running) -> None:
    """Mode 0600."""
    assert program.path.stat().st_mode & 0o777 == 0o600


def test_health_is_json(program: Running) -> None:
    """And says so."""
    answer = ask(program, "GET", "/health", AUTH)
    assert answer.headers["content-type"] == "application/json"
    assert json.loads(answer.body)["status"] == "ok"


@pytest.mark.parametrize("blank", [b"\r\n", b"\n"])
def test_line_ends_without_end_close_the_connection(program: Running, blank: bytes) -> None:
    """A few before a request are passed over; more than a head has room for are a flood, which is not kept."""
    with socket.create_connection(("127.0.0.1", program.port), timeout=10) as client:
        client.sendall(blank * 100 + b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        assert client.recv(4096).startswith(b"HTTP/1.1 401 ")
    sent = 0
    with socket.create_connection(("127.0.0.1", program.port), timeout=10) as client, pytest.raises(ConnectionError):
        while sent < 256 << 20:
            sent += client.send(blank * (1 << 15))
    assert sent < 64 << 20  # what the kernel holds, of which the server takes no more


def test_a_burst_of_strangers_pushes_nobody_out(tmp_path: Path) -> None:
    """Whoever shows the token is served, though hundreds have connected before and behind it in the same moment."""
    head = f"GET /health HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\n\r\n"
    with running(tmp_path / "s.sock", "--asyncio") as program, contextlib.ExitStack() as stack:
        address = "127.0.0.1", program.port
        for _ in range(5):
            for number in range(600):
                stranger = stack.enter_context(socket.socket())
                stranger.setblocking(False)
                stranger.connect_ex(address)
                if number == 200:
                    client = stack.enter_context(socket.create_connection(address, timeout=10))
                    client.sendall(head.encode())
            assert client.recv(4096).startswith(b"HTTP/1.1 200 ")
            stack.close()


def test_of_a_streamed_body_little_is_kept_for_who_reads_nothing() -> None:
    """In bytes, however large its parts are; what is taken makes room, and a disconnect ends the waiting."""

    async def put_all(parts: Parts, put: list[int]) -> None:
        while True:
            await parts.put(bytes(1 << 20))
            put.append(1 << 20)

    async def run() -> None:
        disconnect, put = Disconnect(lambda: False), list[int]()
        parts = Parts(disconnect)
        task = asyncio.create_task(put_all(parts, put))
        chunks = parts.chunks()
        for taken in range(1, 5):
            assert len(await anext(chunks)) == 1 << 20
            await asyncio.sleep(0)
            assert len(put) <= taken + 1
        disconnect.notify()
        with pytest.raises(ConnectionResetError):
            await task
        await chunks.aclose()

    asyncio.run(run())
