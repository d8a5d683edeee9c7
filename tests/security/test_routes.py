"""What a worker and a guard answer to plain HTTP with the token: every documented route, its results and statuses."""

from __future__ import annotations

import ast
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.security.live_run import LiveRun, live_run
from tests.support.attacker import Answer, send_http

pytestmark = pytest.mark.slow("a live run for most tests")

ENGINES = "tests.support.sample_engines"
SHARD = "0123456789abcdef" * 2


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveRun]:
    """For tests that leave it as it was."""
    with live_run(tmp_path_factory.mktemp("run")) as run:
        yield run


@pytest.fixture
def run(tmp_path: Path) -> Iterator[LiveRun]:
    with live_run(tmp_path) as run:
        yield run


def ask(run: LiveRun, method: str, path: str, body: Any = None, **headers: str) -> Answer:
    return send_http(run.worker, method, path, body, token=run.token, headers=headers)


def result(run: LiveRun, method: str, *args: Any, **kwargs: Any) -> Any:
    """What an engine's method gives over HTTP."""
    answer = ask(run, "POST", "/call", {"method": method, "args": args, "kwargs": kwargs})
    assert answer.status == 200, answer.body
    return answer.json["result"]


def test_health_names_engines_and_forks(shared: LiveRun) -> None:
    """`GET /health` {status, engines, forked_children}, over the Unix socket and over TCP."""
    for address in (shared.worker, shared.worker_tcp):
        health = send_http(address, "GET", "/health", token=shared.token)
        assert health.status == 200 and health.headers["content-type"] == "application/json"
        assert health.json["status"] == "ok" and health.json["engines"] == ["actor/0"]
        assert health.json["forked_children"] == []
    assert send_http(shared.worker, "HEAD", "/health", token=shared.token)[::2] == (405, b"")


def test_curl_works(shared: LiveRun) -> None:
    """The one line that the documentation shows."""
    curl = ["curl", "-sS", "--unix-socket", shared.worker.removeprefix("unix:"), "-H", "@-", "http://localhost/health"]
    header = f"Authorization: Bearer {shared.token}\n"
    done = subprocess.run(curl, input=header, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["status"] == "ok"


def test_calls(shared: LiveRun) -> None:
    """`/call`: the result as JSON; async methods too; 404 unknown engine, 400 unknown method, 500 a method's error."""
    assert result(shared, "add", 1, b=2) == 3
    assert result(shared, "later", {"x": [1, None, "é"]}) == {"x": [1, None, "é"]}
    meta = {"method": "greet", "engine_name": "actor/0", "rpc_meta": {"broadcast": False}}
    assert ask(shared, "POST", "/call", meta).json == {"result": "hello"}
    unknown = ask(shared, "POST", "/call", {"method": "greet", "engine_name": "nobody"})
    assert unknown.status == 404 and "actor/0" in unknown.json["error"]
    missing = ask(shared, "POST", "/call", {"method": "gret"})
    assert missing.status == 400 and "greet" in missing.json["error"]
    failed = ask(shared, "POST", "/call", {"method": "fail", "args": ["no luck"]})
    assert failed.status == 500 and failed.json["type"] == "builtins.ValueError"
    assert "no luck" in failed.json["error"] and "sample_engines.py" in failed.json["traceback"]
    assert ask(shared, "POST", "/call", {"method": "missing_attribute"}).status == 500
    assert ask(shared, "POST", "/call", {"method": "add", "args": [1, 2, 3, 4]}).status == 500
    odd = ask(shared, "POST", "/call", {"method": "unencodable"})
    assert odd.status == 400 and "as JSON" in odd.json["error"]


def test_a_bad_body_is_400(shared: LiveRun) -> None:
    """A sentence says what is wrong with it, and the worker goes on."""
    for path in ("/call", "/create_engine", "/alloc_ports", "/fork", "/set_env", "/data/batch"):
        for body in (b"", b"{", b"[]", b"null", b"{}", b'{"method": 5}', b"\xff", b"[" * 100_000):
            answer = ask(shared, "POST", path, body)
            assert answer.status == 400 and answer.json["error"].startswith("malformed request "), (path, body[:20])
    assert result(shared, "greet") == "hello"


def test_engines_are_created(run: LiveRun) -> None:
    """`/create_engine`; 400 for what cannot be imported, exists already, or fails in its constructor."""
    wanted = {"engine": f"{ENGINES}.Echo", "engine_name": "second", "init_kwargs": {"greeting": "hi"}}
    assert ask(run, "POST", "/create_engine", wanted).status == 200
    assert ask(run, "POST", "/call", {"method": "greet", "engine_name": "second"}).json == {"result": "hi"}
    assert "of that name" in ask(run, "POST", "/create_engine", wanted).json["error"]
    for engine, text in (
        (f"{ENGINES}.Nothing", "has no 'Nothing'"),
        ("no_such_module.Engine", "ModuleNotFoundError"),
        ("os.system", "standard library"),
        (f"{ENGINES}.BadConstructor", "no such model"),
    ):
        refused = ask(run, "POST", "/create_engine", {"engine": engine, "engine_name": "third"})
        assert refused.status == 400 and text in refused.json["error"], refused.body
    assert ask(run, "POST", "/create_engine", {"engine": f"{ENGINES}.Echo", "engine_name": "third"}).status == 200


def test_the_environment_is_set_for_the_worker_and_its_later_forks(run: LiveRun) -> None:
    """`/set_env`; what an environment cannot hold, and the runtime's own names, are refused whole."""
    assert ask(run, "POST", "/set_env", {"env": {"COLOUR": "red"}}).status == 200
    assert result(run, "environment", "COLOUR") == {"COLOUR": "red"}
    for bad in ({"A": "nul\0"}, {"A=B": "x"}, {"": "x"}, {"N\0": "x"}, {"ROLECALL_RUN": "other"}):
        assert ask(run, "POST", "/set_env", {"env": {"COLOUR": "blue", **bad}}).status == 400, bad
    assert result(run, "environment", "COLOUR", "ROLECALL_RUN") == {
        "COLOUR": "red",
        "ROLECALL_RUN": run.scheduler.run_id,
    }
    fork = ask(run, "POST", "/fork", {"role": "child", "worker_index": 0}).json
    there = f"tcp:{fork['host']}:{fork['port']}"
    assert send_http(there, "POST", "/create_engine", {"engine": f"{ENGINES}.Echo"}, token=run.token).status == 200
    call = {"method": "environment", "args": ["COLOUR"]}
    assert send_http(there, "POST", "/call", call, token=run.token).json == {"result": {"COLOUR": "red"}}


def test_configure_seeds_from_role_and_rank(shared: LiveRun) -> None:
    """`/configure` {config, role, rank}: the same seed for the same three, another one for another rank."""
    first = ask(shared, "POST", "/configure", {"config": {"seed": 7}, "role": "actor", "rank": 0}).json
    again = ask(shared, "POST", "/configure", {"config": {"seed": 7}, "role": "actor", "rank": 0}).json
    other = ask(shared, "POST", "/configure", {"config": {"seed": 7}, "role": "actor", "rank": 1}).json
    assert first == again != other
    for config in ({"seed": "many"}, {"seed": [1]}, {"seed": 1e400}):
        assert ask(shared, "POST", "/configure", json.dumps({"config": config}).encode()).status == 400, config


def test_ports_are_leased(shared: LiveRun) -> None:
    """`/alloc_ports` {count > 0} -> {ports, host}; a count that no host has is refused, and at once."""
    answer = ask(shared, "POST", "/alloc_ports", {"count": 3})
    assert answer.status == 200 and answer.json["host"] == "127.0.0.1" and len(set(answer.json["ports"])) == 3
    for count in (0, -1, 10**6, 10**30, 1.5, "3", True):
        assert ask(shared, "POST", "/alloc_ports", {"count": count}).status == 400, count


def test_forks_come_and_go(run: LiveRun) -> None:
    """`/fork` -> {host, port, pid}; `/kill_forked_worker` ends it, 404 for what is no fork of this worker's."""
    fork = ask(run, "POST", "/fork", {"role": "ref", "worker_index": 0, "env": {"COLOUR": "green"}})
    assert fork.status == 200 and psutil.Process(fork.json["pid"]).is_running()
    there = f"tcp:{fork.json['host']}:{fork.json['port']}"
    assert send_http(there, "GET", "/health", token=run.token).json["worker"] == "ref/0"
    assert ask(run, "GET", "/health").json["forked_children"] == ["ref/0"]
    assert ask(run, "POST", "/kill_forked_worker", {"role": "ref", "worker_index": 0}).status == 200
    assert not psutil.pid_exists(fork.json["pid"])
    for role, index in (("ref", 0), ("actor", 0), ("nobody", 3)):
        assert ask(run, "POST", "/kill_forked_worker", {"role": role, "worker_index": index}).status == 404
    assert result(run, "greet") == "hello"


def test_programs_are_forked_too(run: LiveRun) -> None:
    """`command` is a module to run, `raw_cmd` a program with its arguments, which no shell sees."""
    script = "import sys, time; print(sys.argv[1:], flush=True); time.sleep(3600)"
    raw = [sys.executable, "-c", script, "$(touch x); `id` > y & {ports[1]}"]
    fork = ask(run, "POST", "/fork", {"role": "raw", "worker_index": 0, "raw_cmd": raw})
    assert fork.status == 200
    (said,) = ast.literal_eval((run.run_dir / "logs" / "raw-0.log").read_text())
    literal, _, port = said.rpartition(" ")
    assert literal == "$(touch x); `id` > y &" and int(port) != fork.json["port"]
    module = ask(run, "POST", "/fork", {"role": "module", "worker_index": 0, "command": "tests.support.sample_program"})
    assert module.status == 200, module.body


def test_a_bad_fork_is_400_and_leaves_nothing(run: LiveRun) -> None:
    """Names, indices, modules, arguments and variables are checked before anything starts."""
    wrong: dict[str, Any]
    for wrong in (
        {"role": "../x"},
        {"role": "a/b"},
        {"role": ""},
        {"role": "a\0b"},
        {"role": "a" * 64},
        {"worker_index": -1},
        {"worker_index": 10**7},
        {"worker_index": 10**30},
        {"worker_index": "0"},
        {"command": "-c"},
        {"command": "os; import x"},
        {"command": "../x"},
        {"raw_cmd": []},
        {"raw_cmd": ["echo", "a\0b"]},
        {"env": {"A": "\0"}},
        {"env": {"ROLECALL_RUN": "x"}},
    ):
        answer = ask(run, "POST", "/fork", {"role": "ref", "worker_index": 0, **wrong})
        assert answer.status == 400 and answer.json["error"], wrong
        assert ask(run, "GET", "/health").json["forked_children"] == [], wrong
    assert ask(run, "POST", "/fork", {"role": "ref", "worker_index": 0}).status == 200


def test_tensors_are_put_and_read_as_bytes(run: LiveRun) -> None:
    """PUT and GET `/data/<id>`: the same bytes, dtype and shape, small and large ones; other workers see a shard."""
    rng = random.Random(1)
    for number, (dtype, shape) in enumerate(
        [("float32", [2, 3]), ("bfloat16", [512, 1024]), ("int64", []), ("uint8", [0, 4]), ("complex64", [7])]
    ):
        size = {"float32": 24, "bfloat16": 1 << 20, "int64": 8, "uint8": 0, "complex64": 56}[dtype]
        data, shard = rng.randbytes(size), f"{number:032x}"
        stored = ask(run, "PUT", f"/data/{shard}", data, **{"X-Dtype": dtype, "X-Shape": json.dumps(shape)})
        assert stored.status == 200 and stored.json == {"shard_id": shard, "nbytes": size}, stored.body
        read = ask(run, "GET", f"/data/{shard}")
        assert read.status == 200 and read.body == data
        assert (read.headers["x-dtype"], json.loads(read.headers["x-shape"])) == (dtype, shape)


def test_tensors_in_batches(run: LiveRun) -> None:
    """`/data/batch`: one frame; 400 names the missing. `/data/clear`: what was cleared and what is left."""
    head = {"X-Dtype": "int32", "X-Shape": "[2]"}
    assert ask(run, "PUT", f"/data/{SHARD}", b"12345678", **head).status == 200
    batch = ask(run, "POST", "/data/batch", {"shard_ids": [SHARD]})
    assert batch.status == 200 and batch.body.startswith(b"RC01") and b"12345678" in batch.body
    gone = "f" * 32
    missing = ask(run, "POST", "/data/batch", {"shard_ids": [SHARD, gone, "?"]})
    assert missing.status == 400 and missing.json["missing_shard_ids"] == [gone, "?"]
    single = ask(run, "GET", f"/data/{gone}")
    assert single.status == 404 and single.json["missing_shard_ids"] == [gone]
    cleared = ask(run, "DELETE", "/data/clear", {"shard_ids": [SHARD, gone]})
    assert cleared.json == {"cleared_count": 1, "num_tensors": 0, "total_bytes": 0}
    assert ask(run, "GET", f"/data/{SHARD}").status == 404


def test_what_is_no_tensor_is_not_stored(run: LiveRun) -> None:
    """Id, dtype, shape and number of bytes must agree; a stored shard is not replaced."""
    good = {"X-Dtype": "int32", "X-Shape": "[2]"}
    for shard in ("short", "..%2f" * 6 + "ab", SHARD.upper(), SHARD + "0"):
        assert ask(run, "PUT", f"/data/{shard}", b"12345678", **good).status == 400, shard
    for dtype in ("qint8", "object", "load", "int64", ""):
        assert ask(run, "PUT", f"/data/{SHARD}", b"12345678", **{**good, "X-Dtype": dtype}).status == 400, dtype
    for shape in ("", "2", "[3]", "[-2]", "[true]", "[2.0]", f"[{10**30}, {10**30}]", "[1" + ",1" * 99 + "]"):
        assert ask(run, "PUT", f"/data/{SHARD}", b"12345678", **{**good, "X-Shape": shape}).status == 400, shape
    assert ask(run, "PUT", f"/data/{SHARD}", b"12345678", **good).status == 200
    assert ask(run, "PUT", f"/data/{SHARD}", b"87654321", **good).status == 409
    assert ask(run, "GET", f"/data/{SHARD}").body == b"12345678"


def test_metrics_are_numbers(run: LiveRun) -> None:
    """`GET /metrics` of a worker and of the guard."""
    before = ask(run, "GET", "/metrics?format=json").json
    assert before["rss_bytes"] > 1 << 20 and before["store"]["shards"] == 0
    assert result(run, "greet") == "hello"
    assert ask(run, "GET", "/metrics?format=json").json["calls_begun"] == before["calls_begun"] + 1
    text = send_http(run.guard, "GET", "/metrics", token=run.token)
    assert 'rolecall_guard_workers{guard="g0"} 1' in text.body.decode()


def test_unknown_paths_and_methods(shared: LiveRun) -> None:
    """404 and 405 with a sentence, for whoever has the token."""
    assert ask(shared, "GET", "/nonsense").status == 404
    assert ask(shared, "GET", "/..%2ftoken").status == 404
    refused = ask(shared, "BREW", "/call")
    assert refused.status == 405 and refused.headers["allow"] == "POST" and "POST" in refused.json["error"]


def test_the_guard_answers(run: LiveRun) -> None:
    """Health, workers, ports and forks on the guard's own socket, with the same statuses."""

    def ask_guard(method: str, path: str, body: Any = None) -> Answer:
        return send_http(run.guard, method, path, body, token=run.token)

    assert ask_guard("GET", "/health").json["workers"] == 1
    assert ask_guard("GET", "/workers").json[0]["worker"] == "actor/0"
    assert len(ask_guard("POST", "/alloc_ports", {"owner": "me", "count": 2}).json["ports"]) == 2
    fork = ask_guard("POST", "/fork", {"role": "ref", "worker_index": 0, "target": "actor/0"})
    assert fork.status == 200 and fork.json["pid"] != os.getpid()
    assert ask_guard("POST", "/kill_forked_worker", {"role": "ref", "worker_index": 0}).status == 200
    assert ask_guard("POST", "/kill_forked_worker", {"role": "actor", "worker_index": 0}).status == 404
    assert ask_guard("POST", "/fork", {"role": "ref", "worker_index": 0, "target": "nobody/0"}).status in (404, 500)
    for body in (b"", b"{", b"[1]", b'"x"', b"{}", b'{"owner": "me", "count": 1000000}'):
        assert ask_guard("POST", "/alloc_ports", body).status == 400, body
