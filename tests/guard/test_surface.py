"""What a guard shows: its HTTP endpoints, its methods for the command line, its hello, and the merged log."""

import json
import socket
from pathlib import Path
from typing import Any

import pytest

from rolecall.errors import WorkerConfigurationError, WorkerNotFoundError
from rolecall.transport.address import this_host
from tests.guard.guard_rig import Rig, wait_for


def request(rig: Rig, method: str, path: str, body: Any = None, token: str | None = None) -> tuple[int, Any]:
    """One HTTP request to the guard's socket; status and decoded body."""
    data = json.dumps(body).encode() if body is not None else b""
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\nConnection: close\r\n"
    head += f"Authorization: Bearer {rig.token if token is None else token}\r\n\r\n"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(rig.runtime_dir / "g0.sock"))
        sock.sendall(head.encode() + data)
        with sock.makefile("rb") as stream:
            answer = stream.read()
    header, _, content = answer.partition(b"\r\n\r\n")
    kind = json.loads if b"json" in header.lower() else bytes.decode
    return int(header.split()[1]), kind(content)


def test_the_endpoints_answer_curl(rig: Rig) -> None:
    """Health, workers and metrics are plain HTTP on the run's private socket."""
    rig.worker(devices=["0"])
    assert request(rig, "GET", "/health")[1]["workers"] == 1
    status, rows = request(rig, "GET", "/workers")
    assert status == 200 and rows[0]["worker"] == "actor/0" and rows[0]["state"] == "ready"
    text = request(rig, "GET", "/metrics")[1]
    assert 'rolecall_guard_workers_ready{guard="g0"} 1' in text.splitlines()


def test_ports_and_forks_can_be_had_over_http(rig: Rig) -> None:
    """`/alloc_ports`, `/fork` and `/kill_forked_worker` do what the worker's endpoints of that name do."""
    rig.worker()
    assert len(request(rig, "POST", "/alloc_ports", {"owner": "me", "count": 2})[1]["ports"]) == 2
    fork = {"role": "ref", "worker_index": 0, "target": "actor/0"}
    assert request(rig, "POST", "/fork", fork)[1]["pid"]
    assert request(rig, "POST", "/kill_forked_worker", {"role": "ref", "worker_index": 0})[0] == 200
    assert request(rig, "POST", "/kill_forked_worker", {"role": "ref", "worker_index": 0})[0] == 404
    assert request(rig, "POST", "/kill_forked_worker", {"role": "actor", "worker_index": 0})[0] == 404
    assert request(rig, "POST", "/alloc_ports", {"owner": "me", "count": 0})[0] == 400


def test_nothing_is_answered_without_the_token(rig: Rig) -> None:
    """A wrong token is 401 on every path, known or not."""
    for method, path in (("GET", "/health"), ("POST", "/fork"), ("GET", "/nonsense")):
        assert request(rig, method, path, token="0" * 64)[0] == 401


def test_the_command_line_looks_and_kills_and_the_controller_is_told(rig: Rig) -> None:
    """The guard's socket serves `kill`, has no route for what is the controller's, and takes no frames."""
    rig.worker()
    assert request(rig, "POST", "/shutdown", {})[0] == 404
    report = request(rig, "POST", "/kill", {"workers": ["actor/0"], "grace_s": 0})[1]
    assert report["killed"] == {"actor/0": "killed by SIGKILL"}
    assert rig.event("exited")["reason"] == "killed through the guard's socket"


def test_a_guard_says_who_and_where_it_is(rig: Rig) -> None:
    """The hello carries what the run's state shows of a guard."""
    said = rig.said
    assert said.id == rig.hello.name == "g0" and rig.hello.run_id == rig.run_id
    assert said.host == socket.gethostname() and said.host_id == this_host()


def test_a_wrong_request_is_an_error_that_says_so(rig: Rig) -> None:
    """Unknown methods, missing fields and unknown workers are errors of ours, and the guard goes on."""
    with pytest.raises(WorkerConfigurationError, match="unknown method"):
        rig.ask("dance")
    with pytest.raises(WorkerConfigurationError, match=r"missing required field `workers`|unknown field `wrokers`"):
        rig.ask("kill", wrokers=[])
    with pytest.raises(WorkerNotFoundError, match="actr/0"):
        rig.ask("set_env", worker="actr/0", env={})
    assert rig.ask("table") == []


def test_the_merged_log_names_each_lines_worker(rig: Rig) -> None:
    """Lines of all workers come together under their names, the last ones of the dead included."""
    first, second = rig.start({"worker_id": "a/0"}, {"worker_id": "a/1"})
    rig.do(first, "print('one'); print('two')")
    rig.do(second, "import sys; print('three', flush=True); sys.stdout.write('no end'); sys.stdout.flush()")
    rig.ask("kill", workers=["a/0", "a/1"], grace_s=0)
    merged = rig.run_dir / "logs" / "merged.log"
    lines = wait_for(lambda: (text := merged.read_text()).count("\n") >= 4 and text.splitlines())
    assert sorted(lines) == ["[a/0] one", "[a/0] two", "[a/1] no end", "[a/1] three"]


def test_logs_and_sockets_are_private(rig: Rig) -> None:
    """Only the user may read a worker's log, the guard's socket and the run's directory."""
    result = rig.worker()
    logs = rig.run_dir / "logs"
    for path in (Path(result["log_path"]), rig.runtime_dir / "g0.sock", rig.runtime_dir, logs / "merged.log"):
        assert path.stat().st_mode & 0o077 == 0
