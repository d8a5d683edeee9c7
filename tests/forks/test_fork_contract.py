"""The fork contract, sentence by sentence, with real processes."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import math
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import rolecall
from rolecall import Job, Role, Scheduler, SchedulingSpec, SchedulingStrategy, Worker
from rolecall.errors import (
    EncodeError,
    EngineCallError,
    EngineCreationError,
    EngineNotFoundError,
    ProtocolError,
    WorkerConfigurationError,
    WorkerCreationError,
    WorkerFailedError,
    WorkerNotFoundError,
    WorkerTimeoutError,
)
from tests.support import sample_engines, sample_program, served_module
from tests.support.checkout import ROOT
from tests.support.live import ports_leased
from tests.support.schedulers_under_test import OF_PROCESSES, each
from tests.support.waiting import wait_for
from tests.support.worker_processes import of_worker, processes

pytestmark = pytest.mark.slow("programs and forks, on each backend")

Echo = sample_engines.Echo
HTTP_SERVER = [sys.executable, "-u", "-m", "http.server", "--bind", "{host}", "{port}"]
# Writes its arguments, then waits: the log shows what a program was started with.
SHOW = [sys.executable, "-u", "-c", "import sys, time; print(sys.argv[1:]); time.sleep(3600)"]
# The middle one leaves when the other two have said who they are.
FAIL_IN_THE_MIDDLE = """
import pathlib, signal, sys, time
index, folder = sys.argv[1], pathlib.Path(sys.argv[2])
signal.signal(signal.SIGTERM, lambda *_: sys.exit(print("asked to end", flush=True)))
print("I am", index, flush=True)
(folder / index).touch()
while index != "1" or not all((folder / other).exists() for other in "02"):
    time.sleep(0.01)
sys.exit(42)
"""


@pytest.fixture(scope="module", params=each(OF_PROCESSES))
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def s(shared: Scheduler) -> Scheduler:
    return shared


def log(s: Scheduler, worker_id: str) -> str:
    return (Path(s.run_dir) / "logs" / f"{worker_id.replace('/', '-')}.log").read_text()


def bindable(ip: str, port: str) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((ip, int(port)))
        except OSError:
            return False
        return True


def test_when_the_middle_one_of_three_fails_exactly_the_other_two_are_killed(s: Scheduler, tmp_path: Path) -> None:
    """A failed fork is rolled back as a whole: processes, ports and the name are free when the error is raised."""
    actors = s.start("actor", replicas=3)
    actors.create_engine(Echo)
    before, ports = set(processes(s.run_id)), ports_leased(s)
    with pytest.raises(WorkerCreationError) as caught:
        command = [sys.executable, "-c", FAIL_IN_THE_MIDDLE, "{index}", str(tmp_path)]
        actors.fork("bad", command=command, ready={"log": "never printed"})
    assert caught.value.failed == [1]
    assert list(caught.value.log_tails) == [1]
    assert "I am 1" in str(caught.value) and "exit code 42" in str(caught.value)
    assert set(processes(s.run_id)) == before, "seen dead before the error was raised"
    assert ports_leased(s) == ports, "their ports were released before the error was raised"
    for index in (0, 2):
        assert f"I am {index}\nasked to end" in log(s, f"bad/{index}")
    assert actors.call("greet") == ["hello"] * 3
    with pytest.raises(WorkerNotFoundError):
        s.get_workers("bad")
    actors.fork("bad").create_engine(Echo)  # the name is free again


def test_roles_may_be_started_at_the_same_time(s: Scheduler, tmp_path: Path) -> None:
    """Each of two programs is ready when the other one runs."""
    meet = "until test -e $1/$2; do sleep 0.02; done; echo met; sleep 3600"

    async def both() -> list[Role]:
        ways = [["sh", "-c", f"touch $1/{own}; {meet}", "sh", str(tmp_path), other] for own, other in ("ab", "ba")]
        started = [s.astart(f"role{n}", cmd=way, ready={"log": "met"}) for n, way in enumerate(ways)]
        return list(await asyncio.gather(*started))

    assert [role.workers[0].id for role in asyncio.run(both())] == ["role0/0", "role1/0"]


def test_an_unknown_target_and_an_existing_role_are_refused(s: Scheduler, targets: Role) -> None:
    """Forking needs a target that exists and a name that is free."""
    with pytest.raises(WorkerNotFoundError, match=r"no role 'actr' \(running: target\)"):
        s.fork_workers("ref", "actr")
    with pytest.raises(WorkerCreationError, match="of that name"):
        s.fork_workers("target", "target")


def test_a_fork_sees_the_devices_of_its_target_also_when_there_are_several(s: Scheduler) -> None:
    """A fork shares its target's devices and takes none of its own."""
    actors = s.start("actor", replicas=2, gpu=3)
    actors.create_engine(Echo)
    refs = actors.fork("ref")
    refs.create_engine(Echo)
    given = actors.call("environment", "CUDA_VISIBLE_DEVICES")
    assert [len(set(env["CUDA_VISIBLE_DEVICES"].split(","))) for env in given] == [3, 3]
    assert refs.call("environment", "CUDA_VISIBLE_DEVICES") == given
    assert s.start("other", gpu=1)  # forks took none for themselves


def test_a_fork_sees_its_targets_environment_as_it_is_now(s: Scheduler) -> None:
    """Variables set on the target after its start are inherited by forks, engines and programs alike."""
    actors = s.start("actor", replicas=2, env_vars={"COLOUR": "red", "SHAPE": "round"})
    actors.create_engine(Echo)
    actors.set_env({"COLOUR": "blue", "SIZE": "large"})
    assert actors[1].call("environment", "COLOUR", "SIZE") == {"COLOUR": "blue", "SIZE": "large"}
    names = ("COLOUR", "SHAPE", "SIZE")
    expected = {"COLOUR": "blue", "SHAPE": "round", "SIZE": "large"}
    refs = actors.fork("ref")
    refs.create_engine(Echo)
    assert refs.call("environment", *names) == [expected] * 2
    show = "import os, time; print({n: os.environ[n] for n in %r}, flush=True); time.sleep(3600)" % (names,)  # noqa: UP031
    actors.fork("program", command=[sys.executable, "-c", show], ready={"log": "COLOUR"})
    assert str(expected) in log(s, "program/1")


def test_a_program_gets_its_placeholders_and_no_shell(s: Scheduler) -> None:
    """Placeholders are filled in, and every other argument reaches the program unchanged."""
    actors = s.start("actor", replicas=2, gpu=2)
    actors.create_engine(Echo)
    devices = actors[1].call("environment", "CUDA_VISIBLE_DEVICES")["CUDA_VISIBLE_DEVICES"]
    literal = ["$HOME", "; touch /tmp/x", '{"json": {"a": 1}}', "a b", "*"]
    places = ["{host}", "{port}", "{ports[1]}", "{role}", "{index}", "{devices}", "--at={host}:{port}"]
    programs = actors.fork("show", command=[*SHOW, *places, *literal], ready={"log": "--at="})
    worker = programs.workers[1]
    p0, p1 = worker.worker_ports
    filled = [worker.ip, p0, p1, "show", "1", devices, f"--at={worker.ip}:{p0}"]
    assert str([*filled, *literal]) in log(s, "show/1")


def test_an_unknown_placeholder_is_named(s: Scheduler, targets: Role) -> None:
    """A placeholder that does not exist is refused by its name."""
    with pytest.raises((WorkerCreationError, WorkerConfigurationError), match=r"\{prot\}"):
        targets.fork("show", command=[*SHOW, "{prot}"])


def test_a_program_is_ready_by_http_tcp_or_a_line_of_its_log(s: Scheduler, targets: Role) -> None:
    """All three kinds of readiness wait until the program serves."""
    for role, ready in (("http", "/"), ("tcp", "tcp"), ("log", {"log": "Serving HTTP on"})):
        servers = targets.fork(role, command=HTTP_SERVER, ready=ready)
        for worker in servers.workers:
            url = f"http://{worker.ip}:{worker.worker_ports[0]}/"
            assert urllib.request.urlopen(url, timeout=5).status == 200


def told(worker: Worker) -> dict[str, Any]:
    """What a `sample_program` was told."""
    url = f"http://{worker.ip}:{worker.worker_ports[0]}/told"
    return dict(json.loads(urllib.request.urlopen(url, timeout=5).read()))


def test_a_dotted_module_is_told_where_it_is_and_is_ready_when_it_is_healthy(s: Scheduler, targets: Role) -> None:
    """It gets the reference system's arguments, and the same and its target's address as variables."""
    modules = targets.fork("module", command="tests.support.sample_program", env={"COLOUR": "blue"})
    target, worker, run = targets.workers[1], modules.workers[1], Path(s.run_dir)
    found = told(worker)
    expected = ["--host", worker.ip, "--port", worker.worker_ports[0], "--role", "module", "--worker-index", "1"]
    assert found["arguments"] == [*expected, "--experiment-name", run.parent.name, "--trial-name", run.name]
    places = {
        "ROLECALL_HOST": worker.ip,
        "ROLECALL_PORTS": ",".join(worker.worker_ports),
        "ROLECALL_ROLE": "module",
        "ROLECALL_INDEX": "1",
        "ROLECALL_TARGET_HOST": target.ip,
        "ROLECALL_TARGET_PORTS": ",".join(target.worker_ports),
        "COLOUR": "blue",
    }
    assert places.items() <= found["environment"].items()
    with pytest.raises(WorkerConfigurationError, match="dotted module"):
        targets.fork("bad", command="python -m http.server")


def test_a_program_that_serves_a_workers_routes_hosts_engines(s: Scheduler) -> None:
    """As the reference system's proxies do: each call is one request, and its errors are those of a worker."""
    programs = s.start("proxy", replicas=2, cmd="tests.support.sample_program")
    with pytest.raises(EngineNotFoundError, match="no engine proxy/0"):
        programs[0].call("add", 1)
    programs.create_engine(sample_program.Engine, 5)
    assert told(programs.workers[0])["engine"] == "tests.support.sample_program.Engine"
    assert programs.call("add", 1, times=3) == [8, 8]
    assert asyncio.run(s.async_call_engine("proxy/1", "add", None, 1)) == 9
    assert [call.result() for call in programs.submit("add", 1)] == [9, 10]
    with pytest.raises(EngineCreationError, match="Engine already exists"):
        programs[0].create_engine("any.Engine")
    with pytest.raises(EngineCallError, match=r"proxy/0: fail\(\) raised HTTP 500: ValueError: on purpose"):
        programs[0].call("fail", "on purpose")
    with pytest.raises(WorkerTimeoutError):
        programs[0].with_options(timeout=0.3).call("sleep", 2)
    with pytest.raises(EncodeError, match=r"an argument.* builtins\.object .*JSON"):
        programs[0].call("add", object())
    for altered, place in (
        ([math.inf], r"args\[0\]\[0\]: .* float, inf"),
        ({"a": b"x"}, r"args\[0\]\['a'\]: .* bytes"),
        ({1: 2}, r"key 1 of args\[0\]: .* int"),
    ):
        with pytest.raises(EncodeError, match=place):
            programs[0].call("add", altered)
    with pytest.raises(ProtocolError, match="nested too deep"):
        programs[0].with_options(timeout=20).call("nested")
    with pytest.raises(WorkerConfigurationError, match="streams nothing"):
        next(programs[0].stream("add", 1))
    asyncio.run(s.set_worker_env("proxy/0", {"COLOUR": "blue"}))
    with pytest.raises(EngineCallError, match="no such colour"):
        asyncio.run(s.set_worker_env("proxy/0", {"COLOUR": "refused"}))
    assert told(programs.workers[0])["environment"]["COLOUR"] == "blue"
    news: queue.Queue[tuple[str, str]] = queue.Queue()
    s.subscribe(lambda topic, facts: news.put((topic, facts["worker"])))
    programs[1].call("hang")
    assert news.get(timeout=60) == ("stalled", "proxy/1"), "its /health is silent"
    programs[1].call("wake")
    assert news.get(timeout=60) == ("resumed", "proxy/1")
    with pytest.raises(WorkerConfigurationError, match="has no route for 'destroy'"):
        programs[0].destroy_engine()
    waiting = programs[0].submit("sleep", 60)
    programs[0].submit("leave", 7)
    with pytest.raises(WorkerFailedError, match="exit code 7"):
        waiting.result()
    programs[0].restart()
    assert programs[0].call("add", 1) == 6, "with its engine made again"
    assert told(programs.workers[0])["environment"]["COLOUR"] == "blue", "not what it had refused"


def test_a_program_without_those_routes_hosts_no_engines(s: Scheduler, targets: Role) -> None:
    """It is asked where it has a `/health`, and else not."""
    healthy = [*HTTP_SERVER, "--directory", str(Path(s.run_dir, "health"))]
    (Path(s.run_dir) / "health" / "health").mkdir(parents=True)
    for role, command, ready in (("server", healthy, "/health"), ("quiet", HTTP_SERVER, None)):
        program = targets.fork(role, command, ready=ready)
        with pytest.raises(WorkerConfigurationError, match="hosts no engines"):
            program.create_engine(Echo)
        program.set_env({"COLOUR": "blue"})


def asked(s: Scheduler, worker: Worker, path: str, body: bytes | None = None, **headers: str) -> tuple[int, bytes]:
    """What a worker answers to a request with the run's token, or with headers of the test's own."""
    token = Path(s.inspect().runtime_dir, "token").read_text().strip()
    url = f"http://{worker.ip}:{worker.worker_ports[0]}{path}"
    request = urllib.request.Request(url, body, headers or {"Authorization": f"Bearer {token}"})
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as e:
        return e.code, e.read()


def test_a_module_that_serves_an_app_is_http_server_and_worker_on_one_port(s: Scheduler, targets: Role) -> None:
    """Engines, calls, streams, variables, stacks, restarts and deaths are as of any worker, the app is beside them."""
    proxies = targets.fork("proxy", command="tests.support.served_module")
    proxies.create_engine(served_module.Counter, 5)
    assert proxies.call("add", 2) == [7, 7]
    assert list(proxies[1].stream("count", 3)) == [0, 1, 2]
    proxies.set_env({"COLOUR": "blue"})
    worker, target = proxies.workers[1], targets.workers[1]
    assert asked(s, worker, "/add", b"10") == (200, b"17"), "the app and the engine are of one module"
    assert proxies.call("add", 0) == [7, 17]
    told = json.loads(asked(s, worker, "/told?a=%20b&c", b"body")[1])
    headers = told.pop("headers")
    ports = [int(port) for port in target.worker_ports]
    assert told == {"id": "proxy/1", "targets": ports, "colour": "blue", "body": "body", "query": "a=%20b&c"}
    assert "authorization" not in headers, "the app does not get the run's token"
    assert json.loads(asked(s, worker, "/health")[1])["engines"] == ["proxy/1"]
    assert asked(s, worker, "/nowhere") == (404, b"/nowhere")
    assert "served_module" in proxies[1].stacks()
    waiting = proxies[1].submit("wait")
    os.kill(proxies.inspect()[1].pid, signal.SIGKILL)
    with pytest.raises(WorkerFailedError, match="SIGKILL"):
        waiting.result()
    proxies[1].restart()
    assert proxies[1].call("add", 1) == 6, "with its engine made again"
    proxies.delete()
    assert log(s, "proxy/0").splitlines()[-2:] == ["destroyed", "shut down"]


def test_an_app_may_have_paths_that_need_no_token(s: Scheduler) -> None:
    """All others are refused without it, the worker's own among them; credentials on public ones are the app's."""
    (worker,) = s.start("proxy", cmd="tests.support.served_module").workers
    assert asked(s, worker, "/told", Accept="*/*")[0] == 401
    for path in ("/open/../told", "/open/%2e%2e/told", "//open/told", "/open"):
        assert asked(s, worker, path, Accept="*/*")[0] == 401
    status, body = asked(s, worker, "/open/told", Authorization="Bearer of-a-session")
    assert (status, json.loads(body)["headers"]["authorization"]) == (200, "Bearer of-a-session")
    large = b" " * ((1 << 20) + 1)
    assert asked(s, worker, "/open/told", large, Accept="*/*")[0] == 413
    assert asked(s, worker, "/open/told", large)[0] == 200
    with contextlib.ExitStack() as opened:
        strangers = []
        for _ in range(300):
            sock = opened.enter_context(socket.create_connection((worker.ip, int(worker.worker_ports[0])), timeout=10))
            sock.sendall(f"GET /open/told HTTP/1.1\r\nHost: {worker.ip}\r\n\r\n".encode())
            assert sock.recv(1 << 16).startswith(b"HTTP/1.1 200")
            strangers.append(sock)
        while strangers[0].recv(1 << 16):  # the oldest is closed for the next
            pass
    (worker,) = s.start("open", cmd="tests.support.served_module", env_vars={"PUBLIC": "/"}).workers
    assert asked(s, worker, "/told", Accept="*/*")[0] == 200
    for path in ("/health", "/health/", "/data/x", "//x/health"):
        assert asked(s, worker, path, Accept="*/*")[0] == 401, "the worker's own paths are never public"


def test_a_stream_of_an_app_ends_with_its_client(s: Scheduler) -> None:
    """Events arrive one by one; who leaves is told to the app; an error of the app is one of the request alone."""
    proxies = s.start("proxy", cmd="tests.support.served_module")
    proxies.create_engine(served_module.Counter)
    (worker,) = proxies.workers
    with urllib.request.urlopen(f"http://{worker.ip}:{worker.worker_ports[0]}/open/stream", timeout=30) as events:
        assert [events.readline() for _ in range(3)] == [b"data: 0\n", b"\n", b"data: 1\n"]
    wait_for(lambda: "http.disconnect" in proxies[0].call("seen"), 10, "the app's word of the disconnect")
    assert proxies[0].call("seen")[0] == "up as proxy/0"
    status, body = asked(s, worker, "/broken")
    assert status == 500 and b"broken on purpose" in body
    status, body = asked(s, worker, "/bad-header")
    assert status == 500 and b"bad name" in body
    for path in ("/cut", "/half"):
        with pytest.raises(http.client.IncompleteRead):
            asked(s, worker, path)
        assert f"GET {path}: the application failed" in log(s, "proxy/0")
    assert proxies.call("add", 1) == [1]
    with urllib.request.urlopen(f"http://{worker.ip}:{worker.worker_ports[0]}/open/stubborn", timeout=30) as answer:
        assert answer.read(9) == b"on and on"
    wait_for(lambda: "refused 3 times" in proxies[0].call("seen"), 10, "each send after the disconnect is refused")
    proxies.delete()
    assert log(s, "proxy/0").splitlines()[-1] == "shut down", "in spite of an app that ignores its cancellation"


def test_a_module_whose_startup_fails_is_not_started(s: Scheduler) -> None:
    """The error says what its startup said, a traceback for one, line by line."""
    with pytest.raises(WorkerCreationError, match="startup failed: Traceback:\nno model here"):
        s.start("proxy", cmd="tests.support.served_module", env_vars={"FAIL": "Traceback:\nno model here"})


def test_what_is_served_can_be_called() -> None:
    """At once, and not with its first request."""
    with pytest.raises(WorkerConfigurationError, match=r"no ASGI application: 'module:app'; pass one"):
        rolecall.serve("module:app")  # type: ignore[arg-type]


def test_public_paths_are_a_list_of_paths() -> None:
    """A text is a sequence of texts as well: its `/` would open all of the app."""
    for wrong in ("/open/", ["open/"], [""]):
        with pytest.raises(WorkerConfigurationError, match="bad public="):
            rolecall.serve(served_module.app, public=wrong)


def test_a_module_that_serves_outside_of_a_run_says_what_to_do() -> None:
    """`python -m module` alone is an error at once."""
    run = [sys.executable, "-m", "tests.support.served_module"]
    ended = subprocess.run(run, capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert ended.returncode == 1
    assert 'start the module as a worker: role.fork("proxy", "package.module")' in ended.stderr


def test_a_worker_starts_a_module_as_the_controller_does(s: Scheduler) -> None:
    """`/fork` of a worker gives the same arguments, and answers when the module is healthy."""
    worker = s.start("actor").workers[0]
    token = Path(s.inspect().runtime_dir, "token").read_text().strip()
    asked = {"role": "module", "worker_index": 0, "command": "tests.support.sample_program"}
    url = f"http://{worker.ip}:{worker.worker_ports[0]}/fork"
    request = urllib.request.Request(url, json.dumps(asked).encode(), {"Authorization": f"Bearer {token}"})
    place = json.loads(urllib.request.urlopen(request, timeout=60).read())
    with urllib.request.urlopen(f"http://{place['host']}:{place['port']}/told", timeout=5) as answer:
        assert json.loads(answer.read())["environment"]["ROLECALL_TARGET_PORTS"] == ",".join(worker.worker_ports)


def test_a_program_that_names_its_port_is_ready_when_it_listens_there(s: Scheduler, targets: Role) -> None:
    """However long it takes; placeholders name its target too."""
    target = targets.workers[0]
    late = "import sys, time, http.server as h; time.sleep(1); print(sys.argv[1:], flush=True);"
    late += "h.HTTPServer((sys.argv[1], int(sys.argv[2])), h.SimpleHTTPRequestHandler).serve_forever()"
    places = ["{host}", "{port}", "{experiment}/{trial}", "{target.host}:{target.port}", "{target.ports[1]}"]
    worker = targets.fork("late", command=[sys.executable, "-c", late, *places]).workers[0]
    assert urllib.request.urlopen(f"http://{worker.ip}:{worker.worker_ports[0]}/", timeout=5).status == 200
    first, second = target.worker_ports
    run = "/".join(Path(s.run_dir).parts[-2:])
    filled = [worker.ip, worker.worker_ports[0], run, f"{target.ip}:{first}", second]
    assert str(filled) in log(s, "late/0")


def test_all_that_fail_are_named_with_their_logs(s: Scheduler, caplog: pytest.LogCaptureFixture) -> None:
    """Each is logged on a line, also one that fails after 5 s of imports when the others serve; nothing is left."""
    actors = s.start("actor", replicas=3)
    before, ports = set(processes(s.run_id)), ports_leased(s)
    fail = "import sys, time; i = int(sys.argv[1]); print('I am', i, flush=True);"
    fail += "time.sleep(1 + 0.2 * i if i < 2 else 3600); raise SystemExit(40 + i)"
    with ThreadPoolExecutor(1) as pool, pytest.raises(WorkerCreationError) as caught:
        late = pool.submit(actors.fork, "late", "tests.support.sample_program", env={"FAILS": "1"})
        actors.fork("bad", command=[sys.executable, "-c", fail, "{index}", "{port}"])
    assert caught.value.failed == [0, 1]
    assert ["I am 0" in caught.value.log_tails[0], "I am 1" in caught.value.log_tails[1]] == [True, True]
    assert "exit code 40" in str(caught.value) and "exit code 41" in str(caught.value)
    for worker in ("bad/0", "bad/1"):
        assert f"worker {worker} did not start: the process ended during startup" in caplog.text
    with pytest.raises(WorkerCreationError, match=r"exit code 1[\s\S]*ImportError: no such kernel") as caught:
        late.result()
    assert (caught.value.failed, list(caught.value.log_tails)) == ([1], [1])
    assert "worker late/1 did not start: the process ended during startup" in caplog.text
    assert (set(processes(s.run_id)), ports_leased(s)) == (before, ports)
    assert {role.name for role in s.inspect().roles} <= {"actor", "target"}


def test_a_program_that_dies_while_starting_is_reported_at_once_with_its_log(s: Scheduler, targets: Role) -> None:
    """Its exit code and its output are in the error, long before the time limit."""
    begun = time.monotonic()
    with pytest.raises(WorkerCreationError, match=r"exit code 3[\s\S]*no such checkpoint"):
        targets.fork(
            "bad", command=[sys.executable, "-c", "print('no such checkpoint'); raise SystemExit(3)"], ready="/health"
        )
    assert time.monotonic() - begun < 30, "not at its time limit of 120 s"


def test_deleting_a_forked_role_kills_its_processes_and_leaves_the_target_alone(s: Scheduler, targets: Role) -> None:
    """Descendants are dead and ports are free when the deletion returns."""
    pids = targets.call("pid")
    refs = targets.fork("ref")
    refs.create_engine(sample_engines.Parent)
    wait_for(lambda: len(of_worker(s.run_id, "ref/1")) == 4, 5, "family of the fork")
    ports = [(w.ip, p) for w in refs.workers for p in w.worker_ports]
    s.delete_workers("ref")
    assert of_worker(s.run_id, "ref/0") == of_worker(s.run_id, "ref/1") == []
    assert all(bindable(ip, port) for ip, port in ports)
    assert targets.call("pid") == pids


def test_deleting_a_target_deletes_its_forks_first(s: Scheduler) -> None:
    """Engines are destroyed from the deepest fork to the target."""
    actors = s.start("actor")
    actors.create_engine(sample_engines.Last, str(Path(s.run_dir) / "order"), "actor")
    refs = actors.fork("ref")
    refs.create_engine(sample_engines.Last, str(Path(s.run_dir) / "order"), "ref")
    deeper = refs.fork("deeper")
    deeper.create_engine(sample_engines.Last, str(Path(s.run_dir) / "order"), "deeper")
    s.delete_workers("actor")
    assert (Path(s.run_dir) / "order").read_text().split() == ["deeper", "ref", "actor"]


def test_a_fork_survives_a_fault_of_its_target_and_the_other_way_round(s: Scheduler) -> None:
    """Target and fork are separate processes: either one may die alone."""
    actors = s.start("actor")
    actors.create_engine(Echo)
    refs = actors.fork("ref")
    refs.create_engine(Echo)
    with pytest.raises(WorkerFailedError):
        refs[0].call("leave", 1)
    assert actors.call("greet") == ["hello"]
    again = actors.fork("again")
    again.create_engine(Echo)
    with pytest.raises(WorkerFailedError):
        actors[0].call("leave", 1)
    assert again.call("greet") == ["hello"]


def test_colocation_in_a_job_may_name_a_program(s: Scheduler, targets: Role) -> None:
    """A colocated job may run a program instead of engines."""
    spec = SchedulingSpec(cmd=HTTP_SERVER, ready="/")
    ids = s.create_workers(Job("server", 2, [spec], SchedulingStrategy("colocation", "target")))
    assert ids == ["server/0", "server/1"]


def test_forks_and_kills_at_the_same_time_leave_a_consistent_table(s: Scheduler, targets: Role) -> None:
    """Roles forked and deleted by many threads leave no process and no row behind."""
    errors: list[BaseException] = []

    def churn(name: str) -> None:
        try:
            for _ in range(5):
                targets.fork(name).create_engine(Echo)
                s.delete_workers(name)
        except BaseException as e:
            errors.append(e)

    threads = [threading.Thread(target=churn, args=(f"f{i}",)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert [r.name for r in s.inspect().roles] == ["target"]
    assert all(not of_worker(s.run_id, f"f{i}/{j}") for i in range(6) for j in range(2))


def test_a_table_look_up_does_not_wait_for_a_process_that_takes_its_time_to_die(s: Scheduler, targets: Role) -> None:
    """The guard's lock covers look-ups only: a kill that waits does not hold up a start."""
    stubborn = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(3600)"
    )
    targets.fork("stubborn", command=[sys.executable, "-c", stubborn], ready={"log": "up"})
    done: list[float] = []

    def delete() -> None:
        s.delete_workers("stubborn")
        done.append(time.monotonic())

    thread = threading.Thread(target=delete)
    thread.start()
    targets.fork("ref").create_engine(Echo)
    started = time.monotonic()
    thread.join()
    assert started < done[0], "the fork was ready while the stubborn one was still dying"
