"""Guards that a cluster's manager has started: what they find out themselves, and whose end is theirs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from rolecall.guard.host import resolved
from rolecall.guard.proc import alive, identify
from rolecall.protocol.guard_config import GuardConfig
from rolecall.transport.address import address_toward, this_host
from tests.guard.guard_rig import Rig, wait_for
from tests.support.checkout import PYTHONPATH

UNIX, TCP = "unix:/tmp/controller.sock", "tcp:127.0.0.1:4000"
# Starts what it is told to with its own stdin, says its pid, and lives on.
STARTER = """
import json, os, subprocess, sys, time
config = json.load(sys.stdin) | {"starter_pid": os.getpid()}
marks = {"ROLECALL_RUN": config["run_id"], "ROLECALL_GUARD": config["guard_id"]}
child = subprocess.Popen(sys.argv[1:], stdin=subprocess.PIPE, start_new_session=True, env=os.environ | marks)
child.stdin.write(json.dumps(config).encode())
child.stdin.close()
time.sleep(3600)
"""


def config(**options: object) -> GuardConfig:
    values = {"run_id": "r", "guard_id": "g", "token": "t", "controller": [UNIX, TCP], "run_dir": "", "runtime_dir": ""}
    return GuardConfig(**{**values, **options})  # type: ignore[arg-type]


def test_on_the_controllers_host_its_socket_and_its_process_count() -> None:
    """The way over the file system stays first, and its death is seen by its pid."""
    here = resolved(config(controller_host=this_host(), controller_pid=7))
    assert (here.controller, here.controller_pid) == ([UNIX, TCP], 7)


def test_elsewhere_they_do_not() -> None:
    """A socket of that path or a process of that pid would be a stranger's."""
    there = resolved(config(controller_host="another", controller_pid=7))
    assert (there.controller, there.controller_pid) == ([TCP], 0)


def test_a_guard_finds_its_own_address_on_the_way_to_the_controller() -> None:
    """Workers bind it, and it is what others are told."""
    found = resolved(config())
    assert (found.ip, found.bind) == ("127.0.0.1", "127.0.0.1")
    assert resolved(config(ip="127.0.0.9")).bind == "127.0.0.9"
    assert resolved(config(controller=[UNIX])).ip == "127.0.0.1"


def test_an_address_needs_a_way_to_it() -> None:
    """No name, no way."""
    assert address_toward("127.0.0.1") == "127.0.0.1"
    with pytest.raises(OSError):
        address_toward("no-such-host.invalid")


class Started(Rig):
    """A guard that a process of a cluster's manager has started, with its configuration on stdin."""

    def _start_guard(self) -> "subprocess.Popen[bytes]":
        guard = [sys.executable, "-m", "rolecall.guard", "--config-fd", "0", "--ordinal-from", "NODE"]
        starter = subprocess.Popen(
            [sys.executable, "-c", STARTER, *guard],
            stdin=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": PYTHONPATH, "NODE": "3"},
        )
        assert starter.stdin is not None
        starter.stdin.write(json.dumps(self.config).encode())
        starter.stdin.close()
        return starter


def end(rig: Started) -> None:
    rig.reaper.kill()
    wait_for(lambda: not rig.left(), timeout=5)
    rig.close()


def test_guards_of_one_configuration_tell_themselves_apart(tmp_path: Path) -> None:
    """By a variable that the launcher sets on each node."""
    rig = Started(tmp_path)
    try:
        assert rig.said.id == "g0-3"
        assert (tmp_path / "logs" / "guard-g0-3.log").exists()
    finally:
        end(rig)


def test_a_guard_ends_with_the_process_that_has_started_it(tmp_path: Path) -> None:
    """Also when that is killed: nothing of the guard stays on the node."""
    rig = Started(tmp_path)
    try:
        rig.worker(argv=[sys.executable, "-c", "import time; time.sleep(3600)"])
        guard = identify(rig.guard_pid)
        assert guard is not None and alive(guard)
        rig.reaper.kill()
        wait_for(lambda: not rig.left(), timeout=5)
        assert not alive(guard)
    finally:
        end(rig)


def test_a_guard_cleans_up_also_after_a_starter_that_kills_its_children(tmp_path: Path) -> None:
    """Ray ends an actor's children with it: a daemon that has left guard and session is found all the same."""
    rig = Started(tmp_path)
    try:
        daemon = (
            "import os, sys, time; os.fork() and sys.exit(); os.setsid(); os.fork() and sys.exit(); time.sleep(3600)"
        )
        rig.worker(
            argv=[sys.executable, "-c", f"import os, time\nif not os.fork():\n    exec({daemon!r})\ntime.sleep(3600)"]
        )
        for child in psutil.Process(rig.reaper.pid).children():
            child.kill()
        rig.reaper.kill()
        wait_for(lambda: not rig.left(), timeout=5)
        assert not Path(rig.runtime_dir, "g0-3").exists()
    finally:
        end(rig)
