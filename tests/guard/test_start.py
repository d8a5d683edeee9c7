"""Starting workers: by fork, cold, many at once, and what happens when one cannot be started."""

import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from rolecall.guard.proc import environ, identify, read_stat
from tests.guard.guard_rig import Rig, gone, wait_for
from tests.support.checkout import PYTHONPATH

pytestmark = pytest.mark.slow("a guard for each test, and many workers")

LOOK = """
import os, signal
folder = "/proc/self/fd/"
files = {n: os.readlink(folder + n) for n in os.listdir(folder) if os.path.lexists(folder + n)}
answer = {
    "ppid": os.getppid(), "sid": os.getsid(0), "pid": os.getpid(), "cwd": os.getcwd(), "env": dict(os.environ),
    "files": files,
    "mask": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
    "inheritable": [n for n in map(int, files) if n > 2 and os.get_inheritable(n)],
}
"""

THREADS = """
import ctypes, torch
library = next(line.split()[-1] for line in open("/proc/self/maps") if "openblas" in line)
answer = [torch.get_num_threads(), ctypes.CDLL(library).scipy_openblas_get_num_threads64_()]
"""


@pytest.mark.parametrize("cold", [False, True])
def test_a_worker_is_a_process_of_its_own_below_the_guard(rig: Rig, cold: bool) -> None:
    """Forked or cold, a worker has its own session, log and environment, and nothing open that is another's."""
    extra = {"PYTHONHASHSEED": "7"} if cold else {}
    result = rig.worker(env={"COLOUR": "blue", **extra}, devices=["3", "5"], cores=1)
    seen = rig.do(result, LOOK)
    assert (seen["ppid"], seen["sid"], seen["pid"]) == (rig.guard_pid, result["pid"], result["pid"])
    assert seen["cwd"] == str(rig.run_dir) and seen["mask"] == [] and seen["inheritable"] == []
    assert seen["files"]["0"] == "/dev/null" and seen["files"]["1"] == seen["files"]["2"] == result["log_path"]
    wanted = {"COLOUR": "blue", "CUDA_VISIBLE_DEVICES": "3,5", "OMP_NUM_THREADS": "1", "ROLECALL_WORKER": "actor/0"}
    assert wanted.items() <= seen["env"].items() and seen["env"]["PYTHONPATH"] == PYTHONPATH
    assert "LC_ALL" in os.environ or "LC_ALL" not in seen["env"]
    assert (Path(f"/proc/{result['pid']}/comm").read_text() == "rc:actor/0\n") is not cold


def test_the_environment_that_proc_shows_names_the_worker(rig: Rig) -> None:
    """`/proc/<pid>/environ` of a forked worker and of what it forks itself bears run, guard and worker."""
    result = rig.worker()
    child = rig.do(result, "import os\nanswer = os.fork()\nif answer == 0:\n    import signal; signal.pause()")
    for pid in (result["pid"], child):
        shown = environ(pid)
        assert shown["ROLECALL_WORKER"] == "actor/0"
        assert (shown["ROLECALL_RUN"], shown["ROLECALL_GUARD"]) == (rig.run_id, "g0")


def test_a_users_thread_count_wins_over_the_slots_cores(rig: Rig) -> None:
    """Thread counts are the user's, else the slot's cores, and never more than the host has."""
    few, many = rig.start(
        {"worker_id": "a/0", "env": {"OMP_NUM_THREADS": "3"}, "cores": 1}, {"worker_id": "a/1", "cores": 4096}
    )
    source = "import os; answer = [os.environ['OMP_NUM_THREADS'], os.environ['MKL_NUM_THREADS']]"
    assert rig.do(few, source) == ["3", "1"]
    assert rig.do(many, source)[0] == str(len(os.sched_getaffinity(0)))


def test_preloaded_libraries_use_a_workers_threads(make_rig: Callable[..., Rig]) -> None:
    """The template imports with one thread; a worker's torch and numpy use as many as its cores."""
    rig = make_rig(preload=["torch", "numpy"])
    cores = len(os.sched_getaffinity(0))
    one, all_of_them = rig.start({"worker_id": "a/0", "cores": 1}, {"worker_id": "a/1", "cores": cores})
    assert rig.do(one, THREADS) == [1, 1] and rig.do(all_of_them, THREADS) == [cores, cores]


def test_forked_workers_do_not_share_their_random_numbers(rig: Rig) -> None:
    """Two forks of one template draw different numbers."""
    first, second = rig.start({"worker_id": "a/0"}, {"worker_id": "a/1"})
    source = "import random; answer = random.random()"
    assert rig.do(first, source) != rig.do(second, source)


def test_many_workers_start_at_once_and_in_order(rig: Rig) -> None:
    """Thirty specs give thirty results in their order, each a process of its own with ports of its own."""
    results = rig.start(*({"worker_id": f"a/{index}", "port_count": 3} for index in range(30)))
    assert [result["worker_id"] for result in results] == [f"a/{index}" for index in range(30)]
    assert all(result["ok"] for result in results)
    assert len({result["pid"] for result in results}) == 30
    assert len({port for result in results for port in result["ports"]}) == 90
    assert list(results[0]["timeline"]) == ["requested", "forked", "ready"]


def test_one_failure_leaves_the_others_alone(rig: Rig) -> None:
    """A worker that ends while it starts is reported at once with exit code and log; the one beside it is ready."""
    bad, good = rig.start(
        {"worker_id": "a/0", "env": {"STAND_IN_BEFORE_READY": "print('no luck', flush=True); os._exit(3)"}},
        {"worker_id": "a/1"},
    )
    assert not bad["ok"] and (bad["exit_code"], bad["signal"]) == (3, None) and "no luck" in bad["log_tail"]
    assert "exit code 3" in bad["error"]
    assert good["ok"] and rig.do(good, "answer = 1") == 1
    assert [row["worker"] for row in rig.ask("table")] == ["a/1"]


def test_results_can_be_had_as_they_come(rig: Rig) -> None:
    """A streamed start tells of a failure while others still start; giving up then ends those."""
    specs = [
        {"worker_id": "a/0", "env": {"STAND_IN_BEFORE_READY": "threading.Event().wait()"}},
        {"worker_id": "a/1", "env": {"STAND_IN_BEFORE_READY": "os._exit(3)"}},
    ]
    for result in rig.peer.request("start", {"specs": specs}, streaming=True, timeout=30):
        assert (result["worker_id"], result["ok"], result["exit_code"]) == ("a/1", False, 3)
        break
    wait_for(lambda: rig.ask("table") == [])


def test_a_worker_that_is_not_ready_in_time_is_killed(rig: Rig) -> None:
    """`start_timeout` ends a start, and nothing of it is left."""
    (result,) = rig.start(
        {"worker_id": "a/0", "start_timeout": 0.3, "env": {"STAND_IN_BEFORE_READY": "threading.Event().wait()"}}
    )
    assert not result["ok"] and result["error"] == "not ready within 0.3 s"
    assert identify(result["pid"]) is None and rig.ask("table") == []


def test_a_name_is_taken_once(rig: Rig) -> None:
    """A second worker of the same id is refused, and the first is not touched."""
    first = rig.worker()
    (second,) = rig.start({"worker_id": "actor/0"})
    assert not second["ok"] and "already running" in second["error"]
    assert rig.do(first, "answer = 'still here'") == "still here"


def test_a_kill_during_a_start_aborts_it(rig: Rig) -> None:
    """Who kills a worker that is starting gets it dead, and who starts it is told."""
    spec = {"worker_id": "a/0", "env": {"STAND_IN_BEFORE_READY": "threading.Event().wait()"}}
    starting = rig.peer.request("start", {"specs": [spec]}, timeout=30)
    wait_for(lambda: [row for row in rig.ask("table") if row["pid"]])
    report = rig.ask("kill", workers=["a/0"], grace_s=0)
    assert list(report["killed"]) == ["a/0"] and len(report["ports"]) == 2
    (result,) = starting.result()
    assert not result["ok"] and "killed while starting" in result["error"]


def test_starts_and_kills_of_one_name_can_be_mixed(rig: Rig) -> None:
    """Threads that start and kill the same worker at random never leave a second one or a stuck name behind."""

    def churn() -> None:
        for _ in range(5):
            rig.start({"worker_id": "a/0"})
            rig.ask("kill", workers=["a/0"], grace_s=0)

    threads = [threading.Thread(target=churn, name=f"churn-{n}") for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert rig.ask("table") == []
    assert rig.worker("a/0")["ok"]


def test_a_killed_template_is_replaced(rig: Rig) -> None:
    """After SIGKILL of the template the next start works on a new one; living workers do not notice."""
    first = rig.worker("a/0")
    template = rig.process(rig.template_pid())
    os.kill(template.pid, signal.SIGKILL)
    second = rig.worker("a/1")
    assert gone(template) and rig.do(first, "answer = 1") == rig.do(second, "answer = 1") == 1


def test_a_stopped_template_is_replaced(rig: Rig) -> None:
    """A template in state T is killed and replaced instead of being waited for."""
    rig.worker("a/0")
    template = rig.process(rig.template_pid())
    os.kill(template.pid, signal.SIGSTOP)
    wait_for(lambda: (stat := read_stat(template.pid)) is None or stat.state == "T")
    assert rig.worker("a/1")["ok"] and gone(template)


def test_a_template_that_is_stopped_while_it_imports_is_replaced(make_rig: Callable[..., Rig], tmp_path: Path) -> None:
    """A worker starts without waiting for the time limit of a stopped template's imports."""
    once = "import os, pathlib, signal\nfirst = pathlib.Path(__file__).with_name('first')\n"
    stop = "if not first.exists():\n    first.touch()\n    os.kill(os.getpid(), signal.SIGSTOP)\n"
    (tmp_path / "stops_once.py").write_text(once + stop)
    rig = make_rig(preload=["stops_once"], sys_path=[str(tmp_path)])
    assert rig.worker("a/0")["ok"], "long before its time to import is over"
    assert (tmp_path / "first").exists()


def test_a_template_killed_while_forking_loses_no_start(rig: Rig) -> None:
    """Starts under way when the template dies are made once: by the old template or by the new one."""
    rig.worker("a/0")
    template = rig.template_pid()
    starting = rig.peer.request("start", {"specs": [{"worker_id": f"b/{n}"} for n in range(40)]}, timeout=60)
    os.kill(template, signal.SIGKILL)
    results = starting.result()
    assert all(result["ok"] for result in results), [result["error"] for result in results]
    workers = [item.worker for item in rig.left() if item.stat.name.startswith("rc:b/")]
    assert sorted(workers) == sorted(f"b/{n}" for n in range(40))


def test_workers_run_under_the_interpreter_that_the_guard_was_told(
    make_rig: Callable[..., Rig], tmp_path: Path
) -> None:
    """`python` of the configuration runs the workers, whether they are forked or started cold."""
    python = tmp_path / "python-of-my-own"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" -X dev "$@"\n')
    python.chmod(0o755)
    rig = make_rig(python=str(python))
    for worker, env in {"a/0": {}, "b/0": {"PYTHONUTF8": "1"}}.items():
        assert rig.do(rig.worker(worker, env=env), "import sys; answer = sys.flags.dev_mode") is True


def test_a_module_that_cannot_be_preloaded_is_skipped(make_rig: Callable[..., Rig]) -> None:
    """A missing module does not keep the template from starting; the guard's log names it."""
    rig = make_rig(preload=["no_such_module", "decimal"])
    result = rig.worker()
    assert rig.do(result, "import sys; answer = 'decimal' in sys.modules") is True
    assert "no_such_module" in (rig.run_dir / "logs" / "guard-g0.log").read_text()


def test_a_template_that_dies_is_no_reason_not_to_start(make_rig: Callable[..., Rig], tmp_path: Path) -> None:
    """Where a preloaded module ends the interpreter, workers are started cold."""
    (tmp_path / "deadly.py").write_text("import os; os.abort()")
    rig = make_rig(preload=["deadly"], sys_path=[str(tmp_path)])
    assert rig.do(rig.worker(), "answer = 1") == 1


def test_an_environment_that_is_no_text_is_passed_on(make_rig: Callable[..., Rig], tmp_path: Path) -> None:
    """A variable of the host's that is not UTF-8 reaches forked and cold workers byte for byte."""
    os.environb[b"ODD"] = b"\xff\xfe"
    try:
        rig = make_rig()
    finally:
        del os.environb[b"ODD"]
    for extra in ({}, {"PYTHONHASHSEED": "1"}):
        result = rig.worker(env=extra)
        assert rig.do(result, "import os; answer = list(os.environb[b'ODD'])") == [255, 254]
        rig.ask("kill", workers=["actor/0"])


def test_a_start_that_its_caller_gives_up_leaves_no_worker(rig: Rig) -> None:
    """When the controller cancels a start or its time is up, what was started is ended, ready or not."""
    stuck = {"worker_id": "a/1", "env": {"STAND_IN_BEFORE_READY": "threading.Event().wait()"}}
    starting = rig.peer.request("start", {"specs": [{"worker_id": "a/0"}, stuck]})
    wait_for(lambda: [row for row in rig.ask("table") if row["state"] == "ready"])
    starting.cancel()
    wait_for(lambda: rig.ask("table") == [])
    assert [item for item in rig.left() if item.stat.name.startswith("rc:a/")] == []


@pytest.mark.parametrize("name", ["../../etc/0", "a b/0", "actor", "actor/x", "/0"])
def test_a_name_that_is_no_workers_is_refused(rig: Rig, name: str) -> None:
    """Ids become parts of paths, so what is not `role/index` starts nothing."""
    (result,) = rig.start({"worker_id": name})
    assert not result["ok"] and result["pid"] is None


def test_an_interactive_sys_path_is_no_reason_for_a_cold_start(rig: Rig) -> None:
    """A PYTHONPATH that equals the base one is not a difference: the worker is forked."""
    result = rig.worker(env={"PYTHONPATH": PYTHONPATH})
    assert Path(f"/proc/{result['pid']}/comm").read_text() == "rc:actor/0\n"
