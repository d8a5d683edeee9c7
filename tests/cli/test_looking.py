"""`ps`, `top` and `stack` on a living run, on one whose controller was killed, and on one that has ended."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import termios
from pathlib import Path

import pytest

from tests.cli.cli_rig import CommandLine, Controller, environment, running

pytestmark = pytest.mark.slow("controllers and commands, each a process")

WORKERS = ["actor/0", "actor/1", "sidecar/0", "sidecar/1"]


def test_ps_shows_every_worker_as_its_guard_and_the_kernel_see_it(cli: CommandLine, controller: Controller) -> None:
    """State, pid, ports, use and calls of each worker, and that the controller lives."""
    controller.ask("say hello")
    seen = cli.json("ps", "--run", "cli/t0")
    assert (seen["state"], seen["controller"]) == ("running", "running")
    assert seen["controller_pid"] == controller.process.pid
    assert [guard["state"] for guard in seen["guards"]] == ["running"]
    workers = {row["worker"]: row for row in seen["workers"]}
    assert sorted(workers) == WORKERS
    assert {row["state"] for row in workers.values()} == {"running"}
    actor = workers["actor/0"]
    assert actor["pid"] == controller.worker_pid("actor/0")
    assert actor["rss_bytes"] > 1 << 20 and 0 <= actor["uptime_s"] < 600 and len(actor["ports"]) == 2
    assert actor["calls"] >= 1 and actor["pending"] == 0
    assert workers["sidecar/0"]["target"] == "actor/0" and workers["sidecar/0"]["command"]


def test_ps_counts_a_call_under_way_as_pending(cli: CommandLine, controller: Controller) -> None:
    """A call that has begun and not ended is pending."""
    assert controller.ask("wait") == "ok"
    pending = 0
    while not pending:  # the call is on its way; the test's own timeout bounds this
        rows = cli.json("ps", "--run", "cli/t0")["workers"]
        (pending,) = [row["pending"] for row in rows if row["worker"] == "actor/0"]
    assert pending == 1
    controller.process.kill()


def test_without_a_name_the_newest_running_run_is_taken_and_named(cli: CommandLine, tmp_path: Path) -> None:
    """A newer run that has ended does not hide the one that runs."""
    with running(tmp_path, "old") as old:
        with running(tmp_path, "new") as new:
            new.end()
        done = cli.run("ps")
        assert "cli/old (running)" in done.stderr
        assert str(old.process.pid) in done.stdout
        rows = {row["name"]: row["state"] for row in cli.json("ps", "--all")}
        assert rows == {"cli/old": "running", "cli/new": "ended"}


def test_a_running_run_is_found_from_any_fileroot(controller: Controller, tmp_path: Path) -> None:
    """By its trial or its id, since its runtime directory points to where it is."""
    elsewhere = CommandLine(tmp_path / "elsewhere")
    for name in ("cli/t0", controller.run_id):
        assert elsewhere.json("ps", "--run", name)["controller_pid"] == controller.process.pid


def test_ps_tells_how_a_worker_died(cli: CommandLine, controller: Controller) -> None:
    """The exit code that the guard reported stands beside the failed worker."""
    assert controller.ask("leave 3").startswith("WorkerFailedError")
    rows = {row["worker"]: row for row in cli.json("ps", "--run", "cli/t0")["workers"]}
    assert rows["actor/1"]["state"] == "failed"
    assert rows["actor/1"]["reason"] == "exit code 3"
    assert rows["actor/0"]["state"] == "running"


def test_ps_shows_the_last_table_when_the_controller_was_killed(cli: CommandLine, controller: Controller) -> None:
    """Workers, pids and ports as last written, each with how it ended."""
    pid = controller.worker_pid("actor/0")
    controller.kill()
    seen = cli.json("ps", "--run", "cli/t0")
    assert (seen["state"], seen["controller"]) == ("ended", "gone")
    assert [row["worker"] for row in seen["workers"]] == WORKERS
    assert seen["workers"][0]["pid"] == pid
    assert {row["state"] for row in seen["workers"]} == {"ended"}
    assert all("controller" in row["reason"] for row in seen["workers"])


def test_ps_still_names_the_workers_of_a_run_that_ended_well(cli: CommandLine, controller: Controller) -> None:
    """Closing a run does not empty its table."""
    controller.end()
    seen = cli.json("ps", "--run", "cli/t0")
    assert (seen["state"], seen["controller"]) == ("ended", "ended")
    assert [(row["worker"], row["reason"]) for row in seen["workers"]] == [(w, "ended with the run") for w in WORKERS]


def test_top_measures_between_two_looks(cli: CommandLine, controller: Controller) -> None:
    """CPU, memory, calls per second, waiting calls, stored bytes and descriptors of each worker that hosts engines."""
    controller.ask("serve")
    seen = cli.json("top", "--run", "cli/t0", "--interval", "0.2")
    rows = {row["worker"]: row for row in seen["workers"]}
    for name in ("actor/0", "actor/1", "served/0"):
        row = rows[name]
        assert 0 <= row["cpu_percent"] < 100 * (os.cpu_count() or 1) + 1 and row["calls_per_s"] == 0  # nobody calls
        assert row["rss_bytes"] > 1 << 20
        assert (row["waiting"], row["store_bytes"], row["ports"]) == (0, 0, 2) and row["open_fds"] > 3
    assert rows["sidecar/0"]["waiting"] is None and rows["sidecar/0"]["rss_bytes"] > 1 << 20


def test_top_of_an_ended_run_shows_what_was_last_known_and_says_so(cli: CommandLine, controller: Controller) -> None:
    """It neither fails nor waits."""
    controller.kill()
    done = cli.run("top", "--run", "cli/t0", "--once")
    assert done.returncode == 0
    assert "actor/0" in done.stdout
    assert "has ended; showing the last known state" in done.stderr


def test_stack_reads_a_living_worker_through_its_guard(cli: CommandLine, controller: Controller) -> None:
    """A call that waits is seen where it waits."""
    controller.ask("wait")
    text = ""
    while "cli_engines.py" not in text:  # the call is on its way; the test's own timeout bounds this
        (taken,) = cli.json("stack", "actor/0", "--run", "cli/t0")
        assert (taken["fresh"], taken["source"]) == (True, "guard")
        text = taken["text"]
    assert "wait (" in text
    controller.process.kill()


def test_stack_reads_the_worker_itself_when_the_guard_is_stuck(cli: CommandLine, controller: Controller) -> None:
    """A stopped guard costs its patience, then py-spy is used from here, and the reason is told."""
    guard = controller.guard_pid()
    os.kill(guard, signal.SIGSTOP)
    try:
        seen = cli.json("ps", "--run", "cli/t0")
        assert [g["state"] for g in seen["guards"]] == ["stuck"]
        assert [row["state"] for row in seen["workers"]] == ["running"] * 4
        (taken,) = cli.json("stack", "actor/0", "--run", "cli/t0")
    finally:
        os.kill(guard, signal.SIGCONT)
    assert (taken["fresh"], taken["source"]) == (True, "py-spy")
    assert "does not answer" in taken["why"][0]


def test_stack_of_a_gone_worker_shows_what_was_saved_and_why_nothing_new(
    cli: CommandLine, controller: Controller
) -> None:
    """Saved stacks are printed, their files named, and the exit status says that they are old."""
    controller.kill()
    for name in ("actor-1-1.txt", "actor-10-2.txt"):
        (controller.directory / "stacks" / name).write_text(f"stacks in {name}\n")
    done = cli.run("stack", "actor/1", "--run", "cli/t0")
    assert done.returncode == 2
    assert "stacks in actor-1-1.txt" in done.stdout and "actor-10" not in done.stdout
    assert "process has ended: ended with the controller" in done.stderr and "actor-1-1.txt" in done.stderr


def test_expected_faults_are_one_line_and_status_2(cli: CommandLine, controller: Controller, tmp_path: Path) -> None:
    """No traceback for an unknown run, worker or log; the message names what there is."""
    for arguments, told in (
        (("ps", "--run", "nothing/here"), "cli/t0"),
        (("stack", "critic/0", "--run", "cli/t0"), "actor/0"),
    ):
        done = cli.run(*arguments)
        assert done.returncode == 2 and not done.stdout
        (line,) = done.stderr.strip().splitlines()
        assert line.startswith("rolecall: ") and told in line
    nobody = CommandLine(tmp_path / "empty").run("logs", "--run", "x")
    assert nobody.returncode == 2 and "Traceback" not in nobody.stderr


def test_a_broken_state_file_is_said_and_does_not_stop_the_look(cli: CommandLine, controller: Controller) -> None:
    """What the guard and the kernel know is shown all the same."""
    controller.kill()
    (controller.directory / "state.json").write_text('{"run_id": "../../etc"}')
    done = cli.run("ps", "--run", "cli/t0")
    assert done.returncode == 0 and "none of ours" in done.stderr and "Traceback" not in done.stderr


def test_top_on_a_terminal_refreshes_until_ctrl_c(cli: CommandLine, controller: Controller) -> None:
    """It shows the workers, again and again, and ends with 130 and no traceback."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (40, 200))
    argv = cli.argv("top", "--run", "cli/t0", "--interval", "0.2")
    terminal = {**environment(), "TERM": "xterm"}
    with os.fdopen(ours, "rb", buffering=0) as screen, subprocess.Popen(argv, stdout=theirs, env=terminal) as top:
        os.close(theirs)
        shown = b""
        while shown.count(b"actor/1") < 3 and select.select([screen], [], [], 20)[0]:
            shown += screen.read(4096)
        top.send_signal(signal.SIGINT)
        try:
            while data := screen.read(4096):
                shown += data
        except OSError:  # how a terminal says that nobody is on its other side any more
            pass
        assert top.wait(30) == 130
    assert b"Traceback" not in shown
