"""One machine: one guard, started as a child of the controller, ready before the first role asks for it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from rolecall.calls import main_path
from rolecall.errors import GuardLostError, WorkerConfigurationError, WorkerTimeoutError
from rolecall.guard.sweep import GUARD, RUN, sweep
from rolecall.schedulers.guards import Question, ask_all
from rolecall.schedulers.one_host import OneHostScheduler
from rolecall.schedulers.plan import base_environment

GUARD_TIMEOUT_S = 60.0
SHUTDOWN_MARGIN_S = 5.0


class LocalScheduler(OneHostScheduler):
    """Workers on this machine.

    Args:
        ip: Address under which workers are reached; loopback, since the run is on one machine.
        options: `devices`, `oversubscribe` and those of `Scheduler`.
    """

    def __init__(self, *, ip: str = "127.0.0.1", **options: Any) -> None:
        self._ip = ip
        super().__init__(**options)

    def _begin(self) -> None:
        self._guard = self._hub.expect("g0")
        self._reaper = self._launch()

    def _wait_for_guard(self) -> None:
        deadline = time.monotonic() + GUARD_TIMEOUT_S
        while not self._guard.wait(0.05):
            if self._reaper.poll() is not None:
                tail = self._guard_log().read_text(errors="replace")[-2000:]
                reason = f"it ended with status {self._reaper.returncode} before it called home\n{tail}"
                self._guard.check()
                raise GuardLostError(self._guard.guard_id, reason=reason)
            self._guard.check()
            if time.monotonic() > deadline:
                raise WorkerTimeoutError("guard g0", GUARD_TIMEOUT_S, "call home", f"see {self._guard_log()}")

    def _end_guards(self, *, graceful: bool) -> None:
        guard = self._guard
        guard.ending = True
        if guard.info:
            grace = self._grace_s if graceful else 0.0
            # A guard that is gone or does not answer is ended from above.
            ask_all([Question(guard, "shutdown", {"grace_s": grace}, grace + SHUTDOWN_MARGIN_S)])
        self._end_reaper()
        sweep(self._run.run_id)

    def _end_reaper(self) -> None:
        """The reaper ends when the guard has. Its first SIGTERM asks a guard that is stuck, its second kills it."""
        patience = 2.0 if self._guard.info else 0.0
        for push in (self._reaper.terminate, self._reaper.terminate, self._reaper.kill):
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._reaper.wait(patience)
                return
            push()
            patience = 2.0
        self._reaper.wait()

    def _guard_log(self) -> Path:
        return self._run.run_dir / "logs" / f"guard-{self._guard.guard_id}.log"

    def _launch(self) -> subprocess.Popen[bytes]:
        """Starts the guard's process. Its configuration, the token in it, goes through a descriptor."""
        fd = _above_stderr(os.memfd_create("rolecall-config", os.MFD_CLOEXEC))
        try:
            os.write(fd, json.dumps(self._guard_config()).encode())
            os.lseek(fd, 0, os.SEEK_SET)
            with self._guard_log().open("ab") as out:
                return subprocess.Popen(
                    [sys.executable, "-m", "rolecall.guard", "--config-fd", str(fd)],
                    pass_fds=[fd],
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=out,
                    start_new_session=True,
                    env=base_environment(os.environ, _python_path())
                    | {RUN: self._run.run_id, GUARD: self._guard.guard_id},  # found by a sweep like all it starts
                )
        finally:
            os.close(fd)

    def _guard_config(self) -> dict[str, Any]:
        return {
            "run_id": self._run.run_id,
            "guard_id": self._guard.guard_id,
            "token": self._run.token,
            "controller": self._hub.addresses,
            "epoch": 0,
            "lease_s": self._lease_s,
            "ip": self._ip,
            "bind": self._ip,
            "run_dir": str(self._run.run_dir),
            "runtime_dir": str(self._run.runtime_dir),
            "preload": self._preload,
            "cwd": _current_folder(),
            "sys_path": _python_path(),
            "main_path": main_path() or "",
            "controller_pid": os.getpid(),
            "controller_start": _start_time(os.getpid()),
        }


def _python_path() -> list[str]:
    """Where the controller finds modules; `""` (the current folder) by name, since workers must find the same."""
    return list(dict.fromkeys(p or _current_folder() for p in sys.path))


def _current_folder() -> str:
    try:
        return str(Path.cwd())
    except FileNotFoundError as e:
        what = "the current folder was deleted"
        raise WorkerConfigurationError(what, None, "change to one that is there; workers start in it too") from e


def _above_stderr(fd: int) -> int:
    """Where stdout was closed, new files get its number, and would be lost when a child's stdout is set up."""
    moved = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
    os.close(fd)
    return moved


def _start_time(pid: int) -> int:
    """Start of a process in clock ticks since boot, which tells it from a later one of the same pid."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
