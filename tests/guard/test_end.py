"""Ends: whoever dies, nothing of the run is left; whoever is only stopped is not taken for dead."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rolecall.guard import cgroup
from rolecall.guard.claims import CGROUP, SEEN, abandoned, claim
from rolecall.guard.proc import Process, identify, read_stat
from rolecall.guard.sweep import clean_abandoned, run_processes
from tests.guard.descendants import workers_with_descendants
from tests.guard.guard_rig import Rig, gone, wait_for
from tests.support.checkout import PYTHONPATH

pytestmark = pytest.mark.slow("a guard for each test, which must end")


def test_a_shutdown_proves_that_nothing_is_left(rig: Rig) -> None:
    """`shutdown` reports what was killed; then there is no process, no socket, and the status is 0."""
    mine = workers_with_descendants(rig)
    report = rig.ask("shutdown", grace_s=0.2)
    assert set(report["killed"]) == {"a/0", "a/1", "p/0"} and report["survivors"] == []
    assert all(gone(process) for process in mine) and rig.reaper.wait(10) == 0
    assert not rig.left() and not (rig.runtime_dir / "g0.sock").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("whom", ["guard", "reaper"])
def test_a_polite_signal_is_an_orderly_shutdown(rig: Rig, whom: str, number: signal.Signals) -> None:
    """SIGTERM or SIGINT to guard or reaper ends all of it with status 0."""
    mine = workers_with_descendants(rig)
    os.kill(rig.guard_pid if whom == "guard" else rig.reaper.pid, number)
    assert rig.reaper.wait(10) == 0 and all(gone(process) for process in mine)


def test_a_killed_guard_leaves_nothing(rig: Rig) -> None:
    """After SIGKILL of the guard its reaper ends everything at once, cleans up and says how the guard died."""
    mine = workers_with_descendants(rig)
    began = time.monotonic()
    os.kill(rig.guard_pid, signal.SIGKILL)
    assert rig.reaper.wait(10) == 128 + signal.SIGKILL
    assert time.monotonic() - began < 1.0
    assert all(gone(process) for process in mine) and not rig.left()
    assert not (rig.runtime_dir / "g0.sock").exists()


def test_a_killed_reaper_leaves_nothing(rig: Rig) -> None:
    """Its guard ends what it owns, marked or not, and cleans up in its place."""
    mine = workers_with_descendants(rig)
    group = _cgroup(rig)
    rig.reaper.kill()
    wait_for(lambda: not (rig.runtime_dir / "g0").exists())
    assert all(gone(process) for process in mine) and not rig.left() and not group.is_dir()
    assert "its reaper was killed" in (rig.run_dir / "logs" / "guard-g0.log").read_text()


@pytest.mark.parametrize("lost", [CGROUP, SEEN])
def test_guard_and_reaper_killed_at_once_leave_what_a_sweep_finds(rig: Rig, lost: str) -> None:
    """What stands below nobody then, and bears no mark, is in the guard's cgroup, and is noted by the guard."""
    mine = workers_with_descendants(rig)
    part, group = rig.runtime_dir / "g0", _cgroup(rig)
    had = group.is_dir()
    wait_for(lambda: (part / SEEN).exists() and str(mine[-1].pid) in (part / SEEN).read_text())
    for number in (signal.SIGSTOP, signal.SIGKILL):  # so that neither can act on the other's death
        os.kill(rig.reaper.pid, number)
        os.kill(rig.guard_pid, number)
    (part / lost).unlink(missing_ok=True)
    wait_for(lambda: abandoned(part))
    assert not gone(mine[-1])
    claim(rig.runtime_dir)  # as a controller, which lives
    assert rig.run_id not in clean_abandoned(rig.runtime_dir.parent) and rig.runtime_dir.exists()
    assert not part.exists() and all(gone(process) for process in mine[:-1])
    assert gone(mine[-1]) == (had or lost == CGROUP), "where there is no cgroup, the note alone finds it"
    if lost == CGROUP:
        assert cgroup.end(str(group), 5.0)
    assert not group.is_dir()


def _cgroup(rig: Rig) -> Path:
    """The guard's; no directory where none can be made."""
    record = rig.runtime_dir / "g0" / CGROUP
    return Path(record.read_text() if record.exists() else "/nowhere")


def test_a_stuck_guard_is_killed_by_its_reaper(rig: Rig) -> None:
    """A second request to end does not wait for a guard that does not react."""
    mine = workers_with_descendants(rig)
    os.kill(rig.guard_pid, signal.SIGSTOP)
    wait_for(lambda: (stat := read_stat(rig.guard_pid)) is not None and stat.state == "T")
    rig.reaper.send_signal(signal.SIGTERM)
    wait_for(lambda: _pending(rig.guard_pid, signal.SIGTERM))
    rig.reaper.send_signal(signal.SIGTERM)
    assert rig.reaper.wait(10) == 128 + signal.SIGKILL and all(gone(process) for process in mine)


def _pending(pid: int, number: int) -> bool:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    mask = next(int(line.split()[1], 16) for line in lines if line.startswith("ShdPnd:"))
    return bool(mask >> (number - 1) & 1)


def test_a_lease_that_nobody_renews_ends_the_guard(make_rig: Callable[..., Rig]) -> None:
    """A controller on another host that is not heard of loses the guard and its workers, the connection open or not."""
    rig = make_rig(lease_s=5.0, controller_pid=0)
    mine = workers_with_descendants(rig)
    assert rig.reaper.wait(20) == 0 and all(gone(process) for process in mine)
    assert "no renewal from the controller for 5 s" in (rig.run_dir / "logs" / "guard-g0.log").read_text()


def test_a_renewed_lease_keeps_the_guard(make_rig: Callable[..., Rig]) -> None:
    """Renewals carry a guard past several leases."""
    rig = make_rig(lease_s=1.5, controller_pid=0)
    result = rig.worker()
    for _ in range(12):
        rig.peer.notify("lease")
        with pytest.raises(subprocess.TimeoutExpired):
            rig.reaper.wait(0.3)
    assert rig.do(result, "answer = 1") == 1


def test_a_closed_connection_ends_the_guard_at_once(make_rig: Callable[..., Rig]) -> None:
    """Without a re-attach asked for, the end of the controller's connection is the end of the guard."""
    rig = make_rig(controller_pid=0)
    mine = workers_with_descendants(rig)
    rig.peer.close()
    began = time.monotonic()
    assert rig.reaper.wait(10) == 0 and all(gone(process) for process in mine)
    assert time.monotonic() - began < 3.0


@pytest.fixture
def controller(tmp_path: Path) -> Iterator[tuple["subprocess.Popen[str]", dict[str, Any]]]:
    """A controller in a process of its own, with a guard (short lease) and a worker that has descendants."""
    env = os.environ | {"PYTHONPATH": PYTHONPATH}
    with subprocess.Popen(
        [sys.executable, "-m", "tests.guard.controller_process", str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        env=env,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        yield process, json.loads(process.stdout.readline())
        process.kill()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV, signal.SIGHUP])
def test_the_controllers_death_ends_everything(
    controller: tuple["subprocess.Popen[str]", dict[str, Any]], number: signal.Signals
) -> None:
    """By whatever signal the controller dies, within a second no process and no file of the run is left."""
    process, facts = controller
    mine = [Process(*pair) for pair in facts["processes"]]
    began = time.monotonic()
    process.send_signal(number)
    wait_for(lambda: all(gone(item) for item in mine) and not run_processes(facts["run_id"]), 5.0)
    assert time.monotonic() - began < 2.0
    wait_for(lambda: identify(facts["reaper"]) is None or gone(Process(facts["reaper"], facts["reaper_start"])))
    assert not Path(facts["runtime_dir"]).exists()


def test_a_stopped_controller_is_not_dead(controller: tuple["subprocess.Popen[str]", dict[str, Any]]) -> None:
    """A controller stopped by Ctrl-Z for longer than its lease finds its workers when it goes on."""
    process, facts = controller
    process.send_signal(signal.SIGSTOP)
    guard_log = Path(facts["guard_log"])
    with pytest.raises(AssertionError):
        wait_for(lambda: "ending" in guard_log.read_text(), 3.0)
    process.send_signal(signal.SIGCONT)
    assert all(not gone(Process(*pair)) for pair in facts["processes"])
