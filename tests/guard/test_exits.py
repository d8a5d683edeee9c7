"""Deaths: noticed at once with their cause, and nothing of the dead worker stays."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rolecall.guard.proc import read_stat, snapshot
from rolecall.protocol.programs import ARGUMENTS
from tests.guard.descendants import SPAWN, descendants
from tests.guard.guard_rig import Rig, gone, wait_for

pytestmark = pytest.mark.slow("a guard for each test, and workers that die")

ORPHANS = """
import os
for _ in range(50):
    child = os.fork()
    if child == 0:
        os.fork()
        os._exit(0)
    os.waitpid(child, 0)
"""


def test_a_killed_worker_is_told_within_a_second_with_signal_and_log(rig: Rig) -> None:
    """SIGKILL of a worker becomes an event with signal, pid, host and the last lines of its log."""
    result = rig.worker()
    rig.do(result, "print('famous last words', flush=True)")
    began = time.monotonic()
    os.kill(result["pid"], signal.SIGKILL)
    event = rig.event("exited")
    assert time.monotonic() - began < 1.0
    assert (event["worker"], event["pid"], event["exit_code"], event["signal"]) == (
        "actor/0",
        result["pid"],
        None,
        signal.SIGKILL,
    )
    assert event["log_tail"].endswith("famous last words\n") and event["log_path"] == result["log_path"]
    assert event["host"] and not event["reason"]


def test_an_exit_code_is_told(rig: Rig) -> None:
    """A worker that ends by itself is told with its exit code; its name and ports are free again."""
    result = rig.worker()
    with pytest.raises((ConnectionError, ValueError)):
        rig.do(result, "import os; os._exit(7)")
    event = rig.event("exited")
    assert (event["exit_code"], event["signal"]) == (7, None)
    assert rig.worker()["pid"] != result["pid"]


def test_a_log_tail_is_bounded(rig: Rig) -> None:
    """However much a worker writes, its death carries whole lines of at most 4 KiB."""
    result = rig.worker()
    rig.do(result, "for n in range(10000): print('line', n)")
    os.kill(result["pid"], signal.SIGKILL)
    tail = rig.event("exited")["log_tail"]
    assert len(tail) <= 4096 and tail.startswith("line ") and tail.endswith("line 9999\n")


def test_a_worker_takes_all_that_is_its_own_with_it(rig: Rig) -> None:
    """When a worker dies its children, those in other sessions and daemons without its environment die at once."""
    result = rig.worker()
    other = rig.worker("other/0")
    mine = descendants(rig, result)
    theirs = rig.process(rig.do(other, SPAWN["setsid"]))
    wait_for(lambda: [row for row in rig.ask("table") if row["worker"] == "actor/0" and row["processes"] >= 7])
    os.kill(result["pid"], signal.SIGKILL)
    rig.event("exited")
    wait_for(lambda: all(gone(process) for process in mine), 2.0)
    assert not gone(theirs) and rig.do(other, "answer = 1") == 1


def test_a_kill_reaches_daemons_and_the_deaf(rig: Rig) -> None:
    """A kill ends every process of a worker's, also one that ignores SIGTERM, and says when all are dead."""
    result = rig.worker()
    mine = descendants(rig, result)
    report = rig.ask("kill", workers=["actor/0", "nobody/0"], grace_s=0.3)
    assert all(gone(process) for process in mine)
    assert report["killed"] == {"actor/0": "killed by SIGTERM"} and report["survivors"] == []
    assert report["unknown"] == ["nobody/0"] and sorted(report["ports"]) == sorted(result["ports"])
    assert rig.ask("table") == [] and rig.events() == []


def test_a_graceful_kill_lets_a_worker_end_by_itself(rig: Rig) -> None:
    """SIGTERM comes first: a worker that handles it ends with its own exit code, within the grace."""
    program = "trap 'echo bye; exit 5' TERM; echo up; while :; do sleep 0.01; done"
    result = rig.worker(argv=["bash", "-c", program], ready={"log": "up"})
    report = rig.ask("kill", workers=["actor/0"], grace_s=20)
    assert report["killed"] == {"actor/0": "exit code 5"}
    assert Path(result["log_path"]).read_text().endswith("bye\n")


def test_a_stopped_worker_can_be_killed_gracefully(rig: Rig) -> None:
    """A worker in state T hears its SIGTERM before the grace is over."""
    result = rig.worker()
    os.kill(result["pid"], signal.SIGSTOP)
    wait_for(lambda: (stat := read_stat(result["pid"])) is not None and stat.state == "T")
    began = time.monotonic()
    assert rig.ask("kill", workers=["actor/0"], grace_s=20)["killed"] == {"actor/0": "killed by SIGTERM"}
    assert time.monotonic() - began < 10


def test_orphans_are_reaped(rig: Rig) -> None:
    """Processes that a worker leaves to the guard do not stay as zombies."""
    result = rig.worker()
    rig.do(result, ORPHANS)
    zombies = f"/proc/{rig.guard_pid}/task/{rig.guard_pid}/children"
    wait_for(
        lambda: all((s := read_stat(int(pid))) is None or s.state != "Z" for pid in Path(zombies).read_text().split())
    )


def test_the_guard_leaks_no_descriptor_and_no_process(rig: Rig) -> None:
    """After many starts, kills and deaths the guard holds what it held after the first."""

    def cycle() -> None:
        results = rig.start({"worker_id": "a/0"}, {"worker_id": "a/1"}, {"worker_id": "a/2", "argv": ["sleep", "100"]})
        os.kill(results[0]["pid"], signal.SIGKILL)
        rig.event("exited")
        rig.ask("kill", workers=["a/0", "a/1", "a/2"], grace_s=0)

    def held() -> int:
        return len(list(Path(f"/proc/{rig.guard_pid}/fd").iterdir()))

    cycle()
    before = held()
    for _ in range(5):
        cycle()
    wait_for(lambda: held() <= before)
    assert [item.stat.name for item in rig.left() if item.stat.name != "rc:template"] == []


def test_a_served_app_is_shut_down_by_sigterm_and_its_exit_names_it(rig: Rig) -> None:
    """Its lifespan ends first; the exit is still that of the signal, by which a cluster's manager is recognized."""
    ready = {"http": "/health", "worker": True}
    result = rig.worker("proxy/0", argv=["{python}", "-m", "tests.support.served_module", *ARGUMENTS], ready=ready)
    assert result["socket"], "it serves as a worker"
    os.kill(result["pid"], signal.SIGTERM)
    event = rig.event("exited")
    assert (event["exit_code"], event["signal"]) == (None, signal.SIGTERM)
    assert event["log_tail"].rstrip().endswith("shut down")


def test_a_process_that_forks_and_ends_again_and_again_is_in_every_look() -> None:
    """As a daemon does twice: the one that has ended meanwhile was listed, and its child was not."""
    hops = "import os, time\nwhile True:\n    time.sleep(0.003)\n    if os.fork(): os._exit(0)\n"
    with subprocess.Popen([sys.executable, "-S", "-c", hops], start_new_session=True) as first:
        first.wait(10)
        try:
            looks = [[s for s in snapshot().values() if s.session == first.pid and not s.dead] for _ in range(40)]
        finally:
            os.killpg(first.pid, signal.SIGKILL)
    assert all(looks), f"missed in {looks.count([])} of {len(looks)} looks"
