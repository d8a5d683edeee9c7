"""SIGHUP, which a terminal sends that is closed, ends a run as SIGTERM does; who ignores it keeps the run."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import threading
from pathlib import Path
from signal import SIGHUP

import pytest

from rolecall import LocalScheduler
from rolecall.errors import WorkerFailedError
from tests.support import sample_engines
from tests.support.checkout import PYTHONPATH
from tests.support.waiting import wait_for
from tests.support.worker_processes import (
    guard_id,
    guard_of,
    of_worker,
    processes,
    reaper_of,
    send,
    templates,
    wait_until_gone,
)

GONE_S = 10.0


@pytest.mark.slow("a controller of its own, twice", seconds=6)
@pytest.mark.parametrize("nohup", [False, True])
def test_a_closed_terminal_ends_a_run_unless_the_controller_ignores_it(nohup: bool, tmp_path: Path) -> None:
    """With `nohup` workers, guard and controller go on: of the terminal they have nothing but the signal."""
    terminal, its = pty.openpty()
    # Where the tests themselves run under `nohup`, what they start would ignore the signal too.
    command = ["setsid", "--ctty", "env", "--default-signal=HUP", *(["nohup"] if nohup else []), sys.executable]
    command += ["-m", "tests.faults.victim_controller", "local", "idle", str(tmp_path)]
    env = {**os.environ, "PYTHONPATH": PYTHONPATH}
    with subprocess.Popen(command, stdin=its, stdout=subprocess.PIPE, stderr=its, text=True, env=env) as controller:
        os.close(its)
        assert controller.stdout is not None
        run_id = next(json.loads(line)["run_id"] for line in controller.stdout if line.startswith("{"))
        wait_for(lambda: len(of_worker(run_id, "actor/0")) == 4, 5, "worker with its children")
        before = set(processes(run_id))
        os.close(terminal)
        if nohup:
            threading.Event().wait(2.0)  # two looks of the guard
            assert controller.poll() is None and set(processes(run_id)) >= before
            controller.terminate()
        controller.wait(GONE_S)
        assert nohup or controller.returncode == -SIGHUP
        wait_until_gone(run_id, GONE_S)


def test_a_hangup_of_any_other_process_is_told_as_its_death(tmp_path: Path) -> None:
    """Of a worker, of the template (which is replaced), of the guard and of the reaper."""
    with LocalScheduler(fileroot=tmp_path, preload=[]) as s:
        role = s.start("actor")
        role.create_engine(sample_engines.Echo)
        pending = role[0].submit("sleep", 60.0)
        send(s.inspect().worker("actor/0").pid, SIGHUP)
        with pytest.raises(WorkerFailedError, match="killed by SIGHUP"):
            pending.result()
        role[0].restart()
        send(templates(s.run_id).pop(), SIGHUP)
        assert len(role.fork("later")) == 1
        for victim in (guard_of, reaper_of):
            mark, pending = f"ROLECALL_GUARD={guard_id(s.run_id, 'actor/0')}", role[0].submit("sleep", 60.0)
            send(victim(s.run_id, "actor/0").pid, SIGHUP)
            with pytest.raises(WorkerFailedError, match="it ended with its guard"):
                pending.result()
            wait_until_gone(s.run_id, GONE_S, mark)
            s.delete_workers()
            role = s.start("actor")
            role.create_engine(sample_engines.Echo)
