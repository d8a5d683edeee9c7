"""A daemon of a test cluster: started in a session of its own, known by its pid and start time, ended for certain."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

END_S = 10.0


def start_time(pid: int) -> str | None:
    """When the process began, in ticks since boot; None if there is none, or only a corpse."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]


@dataclass(frozen=True)
class Daemon:
    """One program that runs in the foreground, with its pid file and what it prints below `dir`."""

    name: str
    command: tuple[str, ...]
    dir: Path

    @property
    def log(self) -> Path:
        return self.dir / "log" / f"{self.name}.out"

    @property
    def pid_file(self) -> Path:
        return self.dir / "run" / f"{self.name}.pid"

    def start(self, env: dict[str, str]) -> None:
        """Starts it unless it runs. It inherits no descriptor, terminal or directory that could keep others waiting."""
        if self.pid() is not None:
            return
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                self.command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, env=env, cwd="/"
            )
        self.pid_file.write_text(f"{process.pid} {start_time(process.pid)}\n")

    def pid(self) -> int | None:
        """Its pid while it runs. A number that the kernel has given to another process since is not it."""
        try:
            pid, _, began = self.pid_file.read_text().strip().partition(" ")
        except OSError:
            return None
        return int(pid) if pid and start_time(int(pid)) == began else None

    def end(self) -> None:
        """SIGTERM, ten seconds, SIGKILL; returns when it is gone."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            pid = self.pid()
            if pid is not None and _gone_after(pid, number):
                break
        self.pid_file.unlink(missing_ok=True)

    def last_words(self, lines: int = 15) -> str:
        """The end of what it printed, for whoever has to find out why it did not start."""
        try:
            tail = self.log.read_text(errors="replace").splitlines()[-lines:]
        except OSError:
            tail = ["(nothing)"]
        return "\n".join([f"--- {self.name}: {self.log}", *tail])


def _gone_after(pid: int, number: signal.Signals) -> bool:
    began = start_time(pid)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
    deadline = time.monotonic() + END_S
    while began is not None and start_time(pid) == began and time.monotonic() < deadline:
        time.sleep(0.02)
    return start_time(pid) != began
