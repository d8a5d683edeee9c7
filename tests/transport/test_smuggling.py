"""Requests that a proxy could understand otherwise than the server behind it, and requests hidden in others."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from contextlib import suppress
from typing import NamedTuple

import pytest

from rolecall.errors import ProtocolError
from rolecall.transport.http.messages import Request, Response, json_response
from rolecall.transport.http.router import AsgiRoute, Message, Receive, Routes, Send
from rolecall.transport.loop import IOThread
from rolecall.transport.peer import Peer
from rolecall.transport.server import Hello, Server

TOKEN = "a-token-that-must-never-show-0123456789abcdef"
HOST = b"Host: 127.0.0.1\r\n"
SHOWN = b"Authorization: Bearer " + TOKEN.encode() + b"\r\n"
PUBLIC = b"POST /open/a HTTP/1.1\r\n" + HOST
CHUNKED = PUBLIC + b"Transfer-Encoding: chunked\r\n\r\n"
HIDDEN = b"GET /secret HTTP/1.1\r\n" + HOST + SHOWN + b"\r\n"
WITHOUT_TOKEN = b"GET /secret HTTP/1.1\r\n" + HOST + b"\r\n"


class Served(NamedTuple):
    """A server with a route and an app whose paths below `/open/` are public; what reached either, by path."""

    port: int
    seen: list[str]


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    seen: list[str] = []

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        seen.append(scope["path"])
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"served"})

    async def secret(request: Request) -> Response:
        seen.append(request.path)
        return json_response("secret")

    def refuse(hello: Hello) -> Peer:
        raise ProtocolError("HTTP alone")

    async def serve() -> tuple[Server, int]:
        routes = Routes(AsgiRoute(app, ["/open/"]))
        routes.add("GET", "/secret", secret)
        server = Server(TOKEN, loop=io.loop, on_peer=refuse, http=routes)
        return server, server.listen_tcp()

    with IOThread() as io:
        server, port = io.run(serve())
        yield Served(port, seen)
        io.run(server.close())


def answers(served: Served, data: bytes) -> list[int]:
    """The statuses of all answers until the server hangs up."""
    served.seen.clear()
    with socket.create_connection(("127.0.0.1", served.port), timeout=20) as sock:
        found = b""
        with suppress(ConnectionError):
            sock.sendall(data)
            while more := sock.recv(65536):
                found += more
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d+) ", found)]


REFUSED = {
    "length and chunks": PUBLIC + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + HIDDEN,
    "chunks and length": PUBLIC + b"Transfer-Encoding: chunked\r\nContent-Length: 60\r\n\r\n0\r\n\r\n" + HIDDEN,
    "two lengths": PUBLIC + b"Content-Length: 0\r\nContent-Length: 5\r\n\r\n" + HIDDEN,
    "a list of lengths": PUBLIC + b"Content-Length: 0, 5\r\n\r\n" + HIDDEN,
    "a length with a sign": PUBLIC + b"Content-Length: +2\r\n\r\nab" + HIDDEN,
    "a length of 5000 digits": PUBLIC + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\n" + HIDDEN,
    "two codings": PUBLIC + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n" + HIDDEN,
    "an unknown coding": PUBLIC + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n" + HIDDEN,
    "a coding behind a tabulator": PUBLIC + b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n" + HIDDEN,
    "a space behind a name": PUBLIC + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n" + HIDDEN,
    "a space in a name": PUBLIC + b"Content Length: 5\r\n\r\n" + HIDDEN,
    "a carriage return alone": PUBLIC + b"X: a\rContent-Length: 5\r\n\r\n" + HIDDEN,
    "NUL in a header": PUBLIC + b"X: a\0b\r\n\r\n" + HIDDEN,
    "NUL in a path": b"GET /open/\0 HTTP/1.1\r\n" + HOST + b"\r\n" + HIDDEN,
    "two hosts": PUBLIC + b"Host: another\r\n\r\n" + HIDDEN,
    "no version": b"GET /open/a\r\n\r\n" + HIDDEN,
    "a chunk with 26 digits": CHUNKED + b"f" * 26 + b"\r\nabc\r\n" + HIDDEN,
    "a chunk of negative size": CHUNKED + b"-1\r\nabc\r\n" + HIDDEN,
    "a chunk in another notation": CHUNKED + b"0x3\r\nabc\r\n0\r\n\r\n" + HIDDEN,
    "a chunk without its end": CHUNKED + b"3\r\nabcXX0\r\n\r\n" + HIDDEN,
    "an extension without end": CHUNKED + b"3;" + b"a" * 200_000,
    "trailers without end": CHUNKED + b"0\r\n" + b"X: y\r\n" * 20_000,
    "a chunk of 16 MiB": CHUNKED + b"1000000\r\n" + b"x" * (2 << 20),
    "a tunnel": b"CONNECT /open/a HTTP/1.1\r\n" + HOST + b"\r\n" + HIDDEN,
    "one without the token, then one with it": WITHOUT_TOKEN + HIDDEN,
    "the token in a continued line": b"GET /secret HTTP/1.1\r\n" + HOST + b"X: a\r\n " + SHOWN + b"\r\n" + HIDDEN,
    "the token in a trailer": b"GET /secret HTTP/1.1\r\n" + HOST + CHUNKED[-30:] + b"0\r\n" + SHOWN + b"\r\n" + HIDDEN,
    "a wrong token beside the right one": HIDDEN[:-2] + b"Authorization: Bearer no\r\n\r\n" + HIDDEN,
}


@pytest.mark.parametrize("data", REFUSED.values(), ids=REFUSED.keys())
def test_an_ambiguous_request_ends_its_connection(served: Served, data: bytes) -> None:
    """One refusal, and nothing behind it is looked at."""
    (status,) = answers(served, data)
    assert 400 <= status <= 501 and served.seen == []


PATHS = (
    "/open/../secret",
    "/open/%2e%2e/secret",
    "/open/..%2fsecret",
    "/open/;/../secret",
    "/open/#/../secret",
    "/%6fpen/../secret",
    "//secret",
    "//open/secret",
    "/secret?/open/",
    "http://127.0.0.1/secret",
    "http://127.0.0.1/open/../secret",
)


@pytest.mark.parametrize("path", PATHS)
def test_no_path_makes_public_what_is_not(served: Served, path: str) -> None:
    """Dots, encoded ones, double slashes, absolute targets: 401 without the token."""
    assert answers(served, f"GET {path} HTTP/1.1\r\n".encode() + HOST + b"\r\n") == [401]
    assert served.seen == []


def test_what_is_behind_a_public_request_needs_the_token_itself(served: Served) -> None:
    """In its body it is no request; behind it, it is one of its own."""
    inside = PUBLIC + b"Content-Length: %d\r\n\r\n" % len(HIDDEN) + HIDDEN
    assert answers(served, inside + WITHOUT_TOKEN) == [200, 401]
    assert served.seen == ["/open/a"]
