"""`stop` ends a run from outside, whatever state it is in, and touches nothing else."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Callable
from typing import Any

import psutil
import pytest

from rolecall.guard.claims import abandoned
from rolecall.scheduler.run import private_root
from tests.cli.cli_rig import CommandLine, Controller, wait_for_exit
from tests.support.waiting import wait_for
from tests.support.worker_processes import hidden, kill_at_once, processes

pytestmark = pytest.mark.slow("controllers and commands, each a process")

Leftover = Callable[[str], subprocess.Popen[bytes]]


def test_stop_ends_everything_of_a_living_run_and_leaves_its_controller(
    cli: CommandLine, controller: Controller
) -> None:
    """Guards and workers are gone when it returns; the controller, which is the user's own, is told who did it."""
    pids = [controller.guard_pid(), controller.worker_pid("actor/0"), controller.worker_pid("sidecar/1")]
    report = cli.json("stop", "--run", "cli/t0", "--yes")
    assert report["clean"] and not report["survivors"] and report["controller_pid"] == controller.process.pid
    assert {int(item.split()[0]) for item in report["ended"]} >= set(pids)
    assert "ended 4 worker(s)" in report["guards"]["g0"]
    assert controller.process.poll() is None
    notes = [worker["reason"] for worker in cli.json("ps", "--run", "cli/t0")["workers"]]
    assert all(re.search(r"stopped by `rolecall stop`, process \d+ of \w+ on ", note) for note in notes), notes
    error = controller.ask("say hello")
    assert re.fullmatch(r"WorkerFailedError: worker actor/0 \(.*\) was stopped by `rolecall stop`, process .*", error)
    refused = "WorkerConfigurationError: the run cli/t0 was stopped by `rolecall stop`, process "
    assert controller.ask("role later").startswith(refused)


def test_stop_ends_a_run_whose_controller_was_killed_and_whose_guard_is_stuck(
    cli: CommandLine, controller: Controller
) -> None:
    """A stopped guard cannot see that its controller died; stop needs neither."""
    guard = controller.guard_pid()
    os.kill(guard, signal.SIGSTOP)
    controller.process.kill()
    controller.process.wait()
    assert cli.json("ps", "--run", "cli/t0")["state"] == "orphaned"
    report = cli.json("stop", "--run", controller.run_id, "--yes")
    assert report["clean"] and f"{guard} rc:guard" in report["ended"]
    seen = cli.json("ps", "--run", "cli/t0")
    assert seen["state"] == "ended"
    assert all(worker["reason"].startswith("stopped by `rolecall stop`") for worker in seen["workers"])


def test_stop_of_a_run_with_a_stopped_controller_does_not_wait_for_it(cli: CommandLine, controller: Controller) -> None:
    """The controller stays stopped and untouched; its guard and workers are gone."""
    controller.process.send_signal(signal.SIGSTOP)
    try:
        assert cli.json("stop", "--run", "cli/t0", "--yes")["clean"]
    finally:
        controller.process.send_signal(signal.SIGCONT)


def test_doctor_finds_a_leftover_and_stop_ends_it_and_nothing_else(cli: CommandLine, leftover: Leftover) -> None:
    """Of a run of which only a process is left: doctor names its pid and the command that ends it."""
    mine, other = leftover("feedfacef00d"), leftover("feedfacef00e")
    report = cli.json("doctor", status=1)
    (finding,) = [f for f in report["findings"] if "feedfacef00d" in f["seen"]]
    assert finding["severity"] == "error" and f"{mine.pid} " in finding["seen"]
    assert finding["command"] == "rolecall stop --run feedfacef00d --yes"
    ended = cli.json(*finding["command"].split()[1:])
    assert [item.split()[0] for item in ended["ended"]] == [str(mine.pid)] and ended["clean"]
    assert mine.wait(10) == -signal.SIGKILL
    assert other.poll() is None


def test_doctor_ends_and_removes_what_a_run_left_that_was_killed_whole(
    cli: CommandLine, controller: Controller
) -> None:
    """Controller, guard and reaper at once. Without `--fix` the run is named, however young, and left as it is."""
    run_id, guard = controller.run_id, psutil.Process(controller.guard_pid())
    assert controller.ask("hide") == "ok"
    kill_at_once([controller.process.pid, guard.pid, guard.ppid()])
    controller.process.wait()
    wait_for(lambda: abandoned(private_root() / run_id), 10, "end of all three")
    left = hidden(run_id)
    about = [f for f in _report(cli)["findings"] if f["left_by"] == run_id]
    assert any(str(private_root() / run_id) in f["seen"] for f in about), about
    assert left and hidden(run_id) == left
    (fixed,) = [e for e in _report(cli, "--fix")["fixed"] if e["run_id"] == run_id]
    assert {int(item.split()[0]) for item in fixed["ended"]} >= left.keys() and fixed["runtime_dir"] == "removed"
    assert not hidden(run_id) and not processes(run_id) and not (private_root() / run_id).exists()
    assert not [f for f in _report(cli, "--fix")["findings"] if f["left_by"] == run_id]


def _report(cli: CommandLine, *options: str) -> dict[str, Any]:
    """Whatever its status: other runs on this machine are its matter too."""
    report: dict[str, Any] = json.loads(cli.run("doctor", "--json", *options).stdout)
    return report


def test_stop_without_a_yes_ends_nothing(cli: CommandLine, leftover: Leftover) -> None:
    """Where nobody can be asked it refuses with status 2."""
    process = leftover("feedfacef00d")
    done = cli.run("stop", "--run", "feedfacef00d")
    assert done.returncode == 2 and "--yes" in done.stderr
    assert process.poll() is None


def test_stop_of_an_ended_run_says_that_nothing_was_running(cli: CommandLine, controller: Controller) -> None:
    """It may be called again and again."""
    controller.kill()
    done = cli.run("stop", "--run", "cli/t0", "--yes")
    assert done.returncode == 0 and "nothing was running" in done.stdout


def test_stop_ends_daemons_that_left_their_tree(cli: CommandLine, controller: Controller, leftover: Leftover) -> None:
    """What bears the run's id is found wherever it stands."""
    stray = leftover(controller.run_id)
    handle = os.pidfd_open(stray.pid)
    assert cli.json("stop", "--run", "cli/t0", "--yes")["clean"]
    wait_for_exit(handle)
    os.close(handle)


def test_an_empty_name_never_means_the_newest_run(cli: CommandLine, controller: Controller) -> None:
    """`rolecall stop --run "$UNSET" --yes` in a script ends nothing."""
    done = cli.run("stop", "--run", "", "--yes")
    assert done.returncode == 2
    assert controller.ask("say still here") == "ok"


def test_nothing_is_sent_or_removed_where_a_state_file_points_astray(cli: CommandLine, controller: Controller) -> None:
    """A runtime directory that others can reach is not used, whatever the state says."""
    controller.kill()
    astray = cli.fileroot / controller.run_id
    astray.mkdir(mode=0o755)
    (astray / "token").write_text("secret of somebody")
    (astray / "g0.sock").touch()
    state = controller.state() | {"runtime_dir": str(astray)}
    (controller.directory / "state.json").write_text(json.dumps(state))
    report = cli.json("stop", "--run", "cli/t0", "--yes")
    assert "not a private directory" in report["guards"]["g0"] and report["runtime_dir"] == "none"
    assert (astray / "token").exists()
