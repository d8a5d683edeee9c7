"""One machine: one guard, started as a child of the controller, ready before the first role asks for it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from rolecall.errors import GuardLostError, WorkerTimeoutError
from rolecall.guard.sweep import sweep
from rolecall.placement.launching import python_path
from rolecall.placement.one_host import OneHostScheduler
from rolecall.placement.plan import base_environment
from rolecall.protocol.environment import marks
from rolecall.protocol.guard import SHUTDOWN, Shutdown
from rolecall.protocol.message import to_json
from rolecall.scheduler.guards import ask_all

GUARD_TIMEOUT_S = 60.0
SHUTDOWN_MARGIN_S = 5.0


class LocalScheduler(OneHostScheduler):
    """Workers on this machine.

    Args:
        ip: Address under which workers are reached; loopback, since the run is on one machine.
        options: `devices`, `oversubscribe` and those of `Scheduler`.
    """

    backend = "local"

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
                reason = f"it ended with status {self._reaper.returncode} before it had connected\n{tail}"
                self._guard.check()
                raise GuardLostError(self._guard.guard_id, reason=reason)
            self._guard.check()
            if time.monotonic() > deadline:
                raise WorkerTimeoutError("guard g0", GUARD_TIMEOUT_S, "connection", f"see {self._guard_log()}")

    def _end_guards(self, *, graceful: bool) -> None:
        guard = self._guard
        guard.ending = True
        if guard.hello:
            grace = self._grace_s if graceful else 0.0
            # A guard that is gone or does not answer is ended from above.
            ask_all(SHUTDOWN, [(guard, Shutdown(grace_s=grace))], grace + SHUTDOWN_MARGIN_S)
        self._end_reaper()
        sweep(self._run.run_id)

    def _end_reaper(self) -> None:
        """The reaper ends when the guard has. Its first SIGTERM asks a guard that is stuck, its second kills it."""
        patience = 2.0 if self._guard.hello else 0.0
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
        config = self._guard_config(self._guard.guard_id, self._ip)
        fd = _above_stderr(os.memfd_create("rolecall-config", os.MFD_CLOEXEC))
        try:
            os.write(fd, to_json(config).encode())
            os.lseek(fd, 0, os.SEEK_SET)
            with self._guard_log().open("ab") as out:
                return subprocess.Popen(
                    [sys.executable, "-m", "rolecall.guard", "--config-fd", str(fd)],
                    pass_fds=[fd],
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=out,
                    start_new_session=True,
                    env=base_environment(os.environ, python_path()) | marks(config.run_id, config.guard_id),
                )
        finally:
            os.close(fd)


def _above_stderr(fd: int) -> int:
    """Where stdout was closed, new files get its number, and would be lost when a child's stdout is set up."""
    moved = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
    os.close(fd)
    return moved
