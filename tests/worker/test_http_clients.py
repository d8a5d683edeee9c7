"""What only HTTP clients meet: clients that hang up, connections that are used again, handles written as JSON."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest

from tests.support import sample_engines
from tests.worker.callers import FailedError, HttpCaller, path, until
from tests.worker.rig import Rig
from tests.worker.worker_engines import Odd, Turns


@pytest.fixture
def http(rig: Rig) -> HttpCaller:
    return rig.http()


def metrics(http: HttpCaller) -> dict[str, Any]:
    return dict(http.send("GET", "/metrics?format=json").result())


def raw_request(rig: Rig, *bodies: dict[str, Any]) -> socket.socket:
    """A connection on which calls are sent at once, one behind the other."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(20.0)
    sock.connect(rig.socket())
    for body in map(json.dumps, bodies):
        head = f"POST /call HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {rig.token}\r\n"
        sock.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
    return sock


def read_until(sock: socket.socket, text: bytes, times: int = 1) -> bytes:
    found = b""
    while found.count(text) < times:
        data = sock.recv(65536)
        assert data, found
        found += data
    return found


@pytest.mark.slow("a worker that imports torch")
def test_tensors_for_a_client_that_has_hung_up_are_freed(http: HttpCaller, engine: str, tmp_path: Path) -> None:
    """Nobody ever had their handles."""
    http.create(path(sample_engines.Tensors), name=engine)
    go = tmp_path / "go"
    call = http.begin("make_late", str(go), named={"engine_name": engine, "tensors": "remote"})
    until(go.with_suffix(".begun").exists)
    call.give_up()
    ended = metrics(http)["calls_ended"]
    go.touch()
    until(lambda: metrics(http)["calls_ended"] == ended + 1)
    assert metrics(http)["store"]["put"] >= 2 and metrics(http)["store"]["shards"] == 0
    http.ask("destroy", engines=[engine])


def test_an_engine_is_made_although_its_client_hangs_up(http: HttpCaller, engine: str, tmp_path: Path) -> None:
    """A constructor that runs goes on, and the engine can be called."""
    gate = tmp_path / "gate"
    body = {"engine": path(Odd), "engine_name": engine, "init_args": [str(gate)]}
    creation = http.send("POST", "/create_engine", body)
    until(gate.with_suffix(".begun").exists)
    creation.give_up()
    assert engine not in http.ask("health")["engines"]
    gate.touch()
    until(lambda: engine in http.ask("health")["engines"])
    assert http.call("greet", named={"engine_name": engine}) == "hello"
    http.ask("destroy", engines=[engine])


def test_a_request_sent_early_is_not_a_hang_up_and_is_answered_next(rig: Rig, http: HttpCaller, engine: str) -> None:
    """Two calls on one connection, the second sent before the first is answered."""
    http.create(path(sample_engines.Echo), name=engine)
    named = {"engine_name": engine}
    with raw_request(
        rig,
        {"method": "later", "args": ["first", 0.3], **named},
        {"method": "later", "args": ["second"], **named},
    ) as sock:
        answers = read_until(sock, b'{"result"', 2)
    assert answers.index(b"first") < answers.index(b"second")
    http.ask("destroy", engines=[engine])


def test_a_connection_is_used_again_after_a_stream(rig: Rig, http: HttpCaller, engine: str) -> None:
    """The stream says where it ends."""
    http.create(path(sample_engines.Echo), name=engine)
    with raw_request(rig, {"method": "numbers", "args": [3], "engine_name": engine, "stream": True}) as sock:
        streamed = read_until(sock, b"0\r\n\r\n")
        assert b"transfer-encoding: chunked" in streamed.lower() and b'{"item":2}' in streamed
        body = json.dumps({"method": "greet", "engine_name": engine})
        head = f"POST /call HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {rig.token}\r\n"
        sock.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
        assert b"hello" in read_until(sock, b'{"result"')
    http.ask("destroy", engines=[engine])


def test_a_client_that_closes_its_sending_side_is_answered_by_what_runs_already(
    rig: Rig, http: HttpCaller, engine: str, tmp_path: Path
) -> None:
    """A plain method that has begun is not cancelled, and neither are the other requests."""
    http.create(path(Turns), name=engine)
    gate = tmp_path / "gate"
    with raw_request(rig, {"method": "turn", "args": [str(gate)], "engine_name": engine}) as sock:
        until(lambda: http.call("seen", named={"engine_name": engine})["inside"] == 1)
        sock.shutdown(socket.SHUT_WR)
        http.call("seen", named={"engine_name": engine})
        gate.touch()
        assert b"200" in read_until(sock, b'{"result"')
    with raw_request(rig) as sock:
        head = f"GET /health HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {rig.token}\r\n\r\n"
        sock.sendall(head.encode())
        sock.shutdown(socket.SHUT_WR)
        assert b"200" in read_until(sock, b"actor/0")
    http.ask("destroy", engines=[engine])


def test_the_form_of_a_handle_is_as_documented(http: HttpCaller, engine: str) -> None:
    """dtype, shape, shards by id, under which the bytes are read; what is no handle is refused."""
    http.create(path(sample_engines.Tensors), name=engine)
    named = {"engine_name": engine, "tensors": "remote"}
    handle = http.call("make", 2, named=named)["x"]
    facts = handle["$rtensor"]
    assert (facts["dtype"], facts["shape"]) == ("float32", [2, 4]) and facts["pieces"] == [[0, 0, 8]]
    shard = facts["shards"][0][0]
    tensor = http.send("GET", f"/data/{shard}")
    assert tensor.result() == (b"\0\0\x80\x3f" * 8).decode("latin-1")
    wrong: list[Any] = [{}, [], None, {**facts, "pieces": [[0, 0, 800]]}, {**facts, "dtype": "float64"}, "x" * 32]
    for bad in wrong:
        with pytest.raises(FailedError) as failed:
            http.call("total", {"$rtensor": bad}, named=named)
        assert (failed.value.kind, failed.value.status) == ("DecodeError", 400), bad
    with pytest.raises(FailedError, match="as JSON") as failed:
        http.call("make", 2, named={"engine_name": engine})
    assert failed.value.status == 400
    assert http.ask("data.clear", shard_ids=[shard])["cleared_count"] == 1
    http.ask("destroy", engines=[engine])


def test_arguments_nested_without_end_are_refused(http: HttpCaller, engine: str) -> None:
    """However the nesting is written."""
    http.create(path(sample_engines.Tensors), name=engine)
    call = f'{{"method": "total", "engine_name": "{engine}", "args": '
    for body, kind in (
        (call + "[" * 5000, "ProtocolError"),
        (call + '["$rtensor", ' + "[" * 900 + "]" * 900 + "]}", "EncodeError"),
    ):
        with pytest.raises(FailedError) as failed:
            http.send_text("POST", "/call", body).result()
        assert (failed.value.status, failed.value.kind) == (400, kind)
    http.ask("destroy", engines=[engine])


def test_half_characters_are_answered_too(http: HttpCaller) -> None:
    """What JSON can say and Unicode cannot, in places that errors quote."""
    for verb, route, body in (
        ("POST", "/data/batch", '{"shard_ids": ["\\ud800"]}'),
        ("POST", "/call", '{"method": "\\ud800"}'),
        ("POST", "/call", '{"method": "greet", "\\ud800": 1}'),
        ("POST", "/create_engine", '{"engine": "\\ud800.X"}'),
    ):
        with pytest.raises(FailedError) as failed:
            http.send_text(verb, route, body).result()
        assert failed.value.status in (400, 404), body
