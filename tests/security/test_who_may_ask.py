"""Nobody without the run's token gets anything but the sentence that says so, on any listener, in any form."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.security.live_run import LiveRun, live_run
from tests.support.attacker import (
    SENTENCE,
    connect,
    exchange,
    frame,
    frames_in,
    guard_hello,
    hello,
    read_frame,
    read_to_end,
    send_http,
    statuses,
)

METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "BREW")
PATHS = (
    "/health",
    "/metrics",
    "/workers",
    "/alloc_ports",
    "/fork",
    "/kill_forked_worker",
    "/set_env",
    "/configure",
    "/create_engine",
    "/call",
    "/data/batch",
    "/data/clear",
    "/data/00000000000000000000000000000000",
    "/",
    "/nonsense",
    "/../token",
    "/%2e%2e/token",
    "//health",
    "/health?token=x",
    "*",
    "http://localhost/health",
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[LiveRun, LiveRun]]:
    """The run under attack, and another one whose token the attacker has. What is refused changes neither."""
    folder = tmp_path_factory.mktemp("runs")
    with live_run(folder, "attacked") as attacked, live_run(folder, "other") as other:
        yield attacked, other


@pytest.fixture
def run(runs: tuple[LiveRun, LiveRun]) -> LiveRun:
    return runs[0]


def wrong_tokens(attacked: LiveRun, other: LiveRun) -> list[str]:
    """Tokens that are close to the right one, and another run's."""
    right = attacked.token
    return ["", "x", right[:-1], right + "0", right.upper(), right[::-1], "\xff" * 64, other.token]


def test_every_route_and_method_asks_for_the_token(runs: tuple[LiveRun, LiveRun]) -> None:
    """No token, a wrong one and another run's: 401 and the sentence for known and unknown paths, by every method."""
    attacked, other = runs
    for name, address in attacked.listeners.items():
        for method in METHODS:
            for path in PATHS:
                for token in (None, "wrong", other.token):
                    answer = send_http(address, method, path, token=token)
                    place = f"{method} {path} on {name}, token {token!r}"
                    assert answer.status == 401, place
                    assert answer.headers["www-authenticate"] == "Bearer", place
                    assert method == "HEAD" or SENTENCE in answer.json["error"], place


def test_no_token_but_the_right_one_will_do(runs: tuple[LiveRun, LiveRun]) -> None:
    """A prefix, a longer one, other letter cases, other schemes, a query, a cookie: 401."""
    attacked, other = runs
    right = attacked.token
    for token in wrong_tokens(attacked, other):
        answer = send_http(attacked.worker, "GET", "/health", headers={"Authorization": f"Bearer {token}"})
        assert answer.status == 401, token
    for headers in (
        {"Authorization": right},
        {"Authorization": f"Basic {right}"},
        {"X-Authorization": f"Bearer {right}"},
        {"Cookie": f"token={right}"},
        {"Proxy-Authorization": f"Bearer {right}"},
    ):
        assert send_http(attacked.worker, "GET", "/health", headers=headers).status == 401, headers
    assert send_http(attacked.worker, "GET", f"/health?token={right}").status == 401
    assert send_http(attacked.worker, "GET", "/health", token=right).status == 200


@pytest.mark.parametrize("listener", ["worker", "worker over TCP", "guard", "controller"])
def test_the_token_comes_before_anything_else_is_parsed(run: LiveRun, listener: str) -> None:
    """Without it, malformed, huge, half and foreign requests get the same 401 as good ones, and the same sentence."""
    address = run.listeners[listener]
    for request in (
        b"POST /call HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\n{bad}",
        b"POST /call HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999999999999\r\n\r\n",
        b"POST /call HTTP/1.1\r\nHost: localhost\r\nContent-Length: minus one\r\n\r\n",
        b"POST /call HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
        b"POST /call HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip\r\n\r\nabcd",
        b"POST /call HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"POST /call HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: evil.example\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nOrigin: http://evil.example\r\n\r\n",
        b"GET /health HTTP/1.1\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: \r\n\r\n",
        b"GET /health HTTP/1.0\r\n\r\n",
        b"GET /health HTTP/9.9\r\nHost: localhost\r\n\r\n",
        b"GET /health\r\n\r\n",
        b"G\xffT /health HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /\xff\x00 HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /health HTTP/1.1\nHost: localhost\n\n",
        b"GET /health HTTP/1.1\r\nno colon here\r\n\r\n",
        b"GET /health HTTP/1.1\r\n folded: first\r\n\r\n",
        b"\r\n\r\nGET /health HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"nonsense\r\n\r\n",
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * 20_000 + b"\r\n",
        b"POST /call HTTP/1.1\r\nHost: localhost\r\nContent-Length: 8000000\r\n\r\n" + b"x" * 8_000_000,
    ):
        answer = exchange(address, request)
        assert statuses(answer) == [401] and SENTENCE.encode() in answer, (request[:80], answer[:200])


def test_a_refused_connection_is_closed(run: LiveRun) -> None:
    """What is pipelined behind a request without the token is not looked at, not even with the token."""
    first = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
    second = f"GET /health HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {run.token}\r\n\r\n".encode()
    for address in run.listeners.values():
        answer = exchange(address, first + second)
        assert statuses(answer) == [401]
        assert b"connection: close" in answer.lower()


def test_the_token_counts_for_one_request_only(run: LiveRun) -> None:
    """Each request of a connection shows the token again."""
    good = f"GET /health HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {run.token}\r\n\r\n".encode()
    bare = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
    assert statuses(exchange(run.worker, good + bare + good)) == [200, 401]


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": "evil.example:80"},
        {"Host": "localhost.evil.example"},
        {"Host": "127.0.0.1.evil.example"},
        {"Host": "[::1].evil.example"},
        {"Host": "localhost:80.evil.example"},
        {"Host": "10.0.0.1"},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://localhost"},
    ],
)
def test_a_foreign_host_or_origin_is_forbidden(run: LiveRun, headers: dict[str, str]) -> None:
    """403 with the right token: a web page that a browser was tricked into trusting reaches nothing."""
    for name, address in run.listeners.items():
        for method in ("GET", "POST", "BREW"):
            answer = send_http(address, method, "/health", token=run.token, headers=headers)
            assert answer.status == 403 and answer.json["error"], (name, method)


def test_frames_need_the_token(runs: tuple[LiveRun, LiveRun]) -> None:
    """A hello with no, a wrong or another run's token is refused with the sentence, and the connection is closed."""
    attacked, other = runs
    for name, address in attacked.listeners.items():
        for token in wrong_tokens(attacked, other):
            (refusal,) = frames_in(exchange(address, guard_hello(token, "g0", attacked.scheduler.run_id)))
            tag, reason, sentence = refusal
            assert (tag, reason) == (2, "token") and SENTENCE in sentence, (name, token)


def test_nothing_behind_a_wrong_token_is_looked_at(run: LiveRun) -> None:
    """The rest of such a hello may be anything; calls behind it are not run."""
    call = frame(b"\x00garbage")
    for address in run.listeners.values():
        answers = frames_in(exchange(address, hello("wrong", session="\x00" * 900) + call * 20))
        assert [answer[:2] for answer in answers] == [[2, "token"]]
    assert run.actor.call("calls") == [0]


def test_what_is_no_hello_is_refused_and_closed(run: LiveRun) -> None:
    """Broken first frames end in a refusal or in a closed connection, before any memory is taken for them."""
    huge = b"RC01" + b"\xff" * 16
    for address in run.listeners.values():
        for data in (
            frame(b"\xc1"),
            frame(b""),
            frame(b"\x00" * 4096),
            frame(b"x" * 5000),
            huge,
            frame(b"", b"buffer"),
        ):
            answers = frames_in(exchange(address, data))
            assert all(answer[0] == 2 for answer in answers), (address, data[:40])


def test_another_runs_guard_cannot_call_home(runs: tuple[LiveRun, LiveRun]) -> None:
    """The controller takes a guard's call from its own run alone, also where the token is right."""
    attacked, other = runs
    for guard_id, run_id in (("g9", attacked.scheduler.run_id), ("g0", other.scheduler.run_id)):
        assert frames_in(exchange(attacked.controller, guard_hello(attacked.token, guard_id, run_id)))[0][0] == 2
    assert attacked.actor.call("greet") == ["hello"]


def test_the_right_token_is_welcome(run: LiveRun) -> None:
    """What the refusals above are measured against: the same hello with the token is answered with a welcome."""
    with connect(run.worker) as sock:
        sock.sendall(hello(run.token))
        assert read_frame(sock)[0] == 1
        sock.sendall(b"no frame at all, but long enough to be one")
        assert read_to_end(sock) == b""
