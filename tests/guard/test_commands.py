"""Programs as workers: their arguments, how they become ready, and what is not taken for ready."""

import http.server
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from rolecall.errors import WorkerConfigurationError
from rolecall.guard.command import Place, fill
from tests.guard.guard_rig import Rig

SERVER = [sys.executable, "-m", "http.server", "--bind", "{host}", "{port}"]
# Answers each request with a body that never ends.
ENDLESS = """
import http.server, sys, time
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        while True:
            self.wfile.write(b"more")
            time.sleep(0.01)
http.server.ThreadingHTTPServer((sys.argv[1], int(sys.argv[2])), Handler).serve_forever()
"""
PLACE = Place("proxy/3", "10.0.0.1", [4000, 4001], "exp", "t0", [5000, 5001])
FACTS: dict[str, Any] = {"place": PLACE, "devices": "0,1", "python": "/opt/python3"}


def test_placeholders_are_filled() -> None:
    """Every placeholder has its value, also inside an argument."""
    argv = ["x", "--at={host}:{port}", "{ports[0]},{ports[1]}", "{role}-{index}", "{devices}", "{python}"]
    assert fill(argv, **FACTS) == ["x", "--at=10.0.0.1:4000", "4000,4001", "proxy-3", "0,1", "/opt/python3"]
    argv = ["{experiment}/{trial}", "{target.host}:{target.port}", "{target.ports[1]}"]
    assert fill(argv, **FACTS) == ["exp/t0", "10.0.0.1:5000", "5001"]


def test_braces_that_are_no_placeholders_stay() -> None:
    """JSON, templates and empty braces reach the program as they were written."""
    argv = ["x", '{"a": {"b": [1]}}', "{{ messages }}", "{{messages}}", "{}", "${1}", "{ port }"]
    assert fill(argv, **FACTS) == argv


@pytest.mark.parametrize(
    "wrong",
    ["{prot}", "{ports[2]}", "{port[0]}", "{ports}", "{role[0]}", "{target}", "{target.role}", "{target.ports[2]}"],
)
def test_an_unknown_placeholder_is_named(wrong: str) -> None:
    """A placeholder that cannot be filled is an error with its name in it."""
    with pytest.raises(WorkerConfigurationError) as caught:
        fill(["x", f"a{wrong}b"], **FACTS)
    assert wrong in str(caught.value)


def test_only_a_fork_has_a_target() -> None:
    """Elsewhere its placeholders are refused, and its variables are not set."""
    alone = Place("proxy/3", "10.0.0.1", [4000])
    with pytest.raises(WorkerConfigurationError, match="only forks have one"):
        fill(["{target.port}"], alone, devices="", python="")
    assert not any("TARGET" in name for name in alone.variables())


def test_a_server_is_ready_when_it_answers(rig: Rig) -> None:
    """With `http` a program is ready when it answers on its own port; the arguments were not seen by a shell."""
    result = rig.worker("web/0", argv=SERVER, ready={"http": "/"})
    assert list(result["timeline"]) == ["requested", "forked", "connected", "ready"]
    argv = Path(f"/proc/{result['pid']}/cmdline").read_text().split("\0")
    assert argv[-2] == str(result["ports"][0]) and os.getsid(result["pid"]) == result["pid"]


def test_a_program_is_ready_by_the_status_alone(rig: Rig) -> None:
    """What follows it is not read, and may never end."""
    rig.worker("web/0", argv=[sys.executable, "-c", ENDLESS, "{host}", "{port}"], ready={"http": "/"})


def test_a_strangers_server_is_not_taken_for_the_programs(rig: Rig) -> None:
    """Somebody else who answers on the port does not make a program ready."""
    ours = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler)
    thread = threading.Thread(target=ours.serve_forever)
    thread.start()
    try:
        (result,) = rig.start(
            {
                "worker_id": "web/0",
                "argv": ["sleep", "100"],
                "ports": [ours.server_port],
                "ready": {"http": "/"},
                "start_timeout": 1.0,
            }
        )
    finally:
        ours.shutdown()
        ours.server_close()
        thread.join()
    error = result["error"]
    assert not result["ok"] and "not ready within 1 s" in error and "not part of the worker" in error


def test_a_listener_of_a_child_counts(rig: Rig) -> None:
    """A program that has its server in a child process is ready when that one listens."""
    script = f"{sys.executable} -m http.server --bind 127.0.0.1 $1 & wait"
    assert rig.worker("web/0", argv=["sh", "-c", script, "sh", "{port}"], ready={"tcp": True})["ok"]


def test_a_line_of_the_log_can_mean_ready(rig: Rig) -> None:
    """With `log` a program is ready when a line matches, not when an earlier worker of that name wrote it."""
    rig.worker("p/0", argv=["sh", "-c", "echo up and running; sleep 100"], ready={"log": "^up and"})
    rig.ask("kill", workers=["p/0"])
    spec = {"worker_id": "p/0", "argv": ["sleep", "100"], "ready": {"log": "^up and"}, "start_timeout": 0.3}
    assert not rig.start(spec)[0]["ok"]


def test_a_program_that_dies_while_starting_is_reported_at_once(rig: Rig) -> None:
    """Exit code and log come right after the death, not after the timeout."""
    began = time.monotonic()
    argv = ["sh", "-c", "echo out of luck >&2; kill -9 $$"]
    (result,) = rig.start({"worker_id": "p/0", "argv": argv, "ready": {"http": "/"}, "start_timeout": 60})
    assert time.monotonic() - began < 5
    assert (result["exit_code"], result["signal"]) == (None, signal.SIGKILL) and "SIGKILL" in result["error"]
    assert result["log_tail"] == "out of luck\n"


def test_a_program_that_does_not_exist_is_named(rig: Rig) -> None:
    """The log says what could not be run and why."""
    (result,) = rig.start({"worker_id": "p/0", "argv": ["no-such-program"]})
    assert not result["ok"] and "'no-such-program': No such file or directory" in result["log_tail"]


def test_a_wrong_command_starts_nothing(rig: Rig) -> None:
    """An unknown placeholder fails the start before there is a process, and the ports are free again."""
    (result,) = rig.start({"worker_id": "p/0", "argv": ["echo", "{prot}"]})
    assert not result["ok"] and result["pid"] is None and "{prot}" in result["error"]
    assert rig.ask("metrics")["ports_leased"] == 0


def test_a_program_gets_exactly_its_environment(rig: Rig) -> None:
    """A program sees the run's marks, its devices and its own variables, no token and nothing invented on the way."""
    result = rig.worker("p/0", argv=["sh", "-c", "env -0; sleep 100"], env={"X": "a\nb"}, devices=["2"])
    env = dict(item.split("=", 1) for item in Path(result["log_path"]).read_text().split("\0") if item)
    assert (env["X"], env["CUDA_VISIBLE_DEVICES"], env["ROLECALL_WORKER"]) == ("a\nb", "2", "p/0")
    assert rig.token not in "".join(env.values()) and ("LC_CTYPE" in env) is ("LC_CTYPE" in os.environ)
