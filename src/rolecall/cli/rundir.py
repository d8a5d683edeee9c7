"""A run directory as it lies on disk: state, events, and who holds its lock. It talks to nobody and writes nothing."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from rolecall.errors import ProtocolError, RolecallError
from rolecall.protocol.message import from_json
from rolecall.protocol.state import RunState

_RUN_ID = re.compile(r"[0-9a-f]{4,64}")
_CLOCK_SLACK_S = 2.0  # start times count in ticks from a boot time in whole seconds


class BrokenStateError(RolecallError):
    """A run's `state.json` cannot be read."""

    def __init__(self, path: str, reason: str) -> None:
        self.path, self.reason = path, reason
        super().__init__(f"{path} cannot be read: {reason}; `rolecall logs` still works")


def on_another_host(host: str) -> bool:
    """Whether a host, as a run's state names it, is another one than this. It names none before anybody was there."""
    return host not in ("", os.uname().nodename)


@dataclass(frozen=True)
class RunDir:
    """`<fileroot>/<experiment>/<trial>/`."""

    path: Path

    @property
    def name(self) -> str:
        return f"{self.path.parent.name}/{self.path.name}"

    def exists(self) -> bool:
        return (self.path / ".lock").exists() or (self.path / "state.json").exists()

    def changed(self) -> float:
        """When the controller last began or wrote something here."""
        return max(_mtime(self.path / ".lock"), _mtime(self.path / "state.json"))

    def state(self) -> RunState:
        """What the controller wrote last; an empty state when it has written none yet.

        Raises:
            BrokenStateError: The file is no state of ours.
        """
        file = self.path / "state.json"
        try:
            state = from_json(RunState, file.read_bytes(), "the controller")
        except FileNotFoundError:
            return RunState()
        except (OSError, ProtocolError) as e:
            raise BrokenStateError(str(file), str(e)) from e
        if state.run_id and not _RUN_ID.fullmatch(state.run_id):
            raise BrokenStateError(str(file), f"run id {state.run_id!r} is none of ours")
        return state

    def events(self) -> Iterator[dict[str, Any]]:
        """The guard's reports, oldest first. A line that is still being written is skipped."""
        try:
            lines = (self.path / "events.jsonl").read_text(errors="replace").splitlines()
        except OSError:
            return
        for line in lines:
            with suppress(ValueError):
                event = json.loads(line)
                if isinstance(event, dict):
                    yield event

    def known(self) -> RunState:
        """As `state`; an empty state for one that cannot be read."""
        try:
            return self.state()
        except BrokenStateError:
            return RunState()

    def controller(self) -> int | None:
        """Pid of the controller while it lives on this host and has the run open, else None."""
        lock, state = self.path / ".lock", self.known()
        try:
            pid = int(lock.read_text().split()[0])
        except (OSError, ValueError, IndexError):
            return None
        if state.controller.ended and state.controller.pid == pid:
            return None
        return pid if holds(pid, lock) else None


def holds(pid: int, lock: Path) -> bool:
    """True when a process has the lock file open. The lock itself is not tried: that could refuse a starting run."""
    try:
        wanted = lock.stat()
        for fd in os.scandir(f"/proc/{pid}/fd"):
            with suppress(FileNotFoundError):  # it was closed in the meantime
                if os.path.samestat(os.stat(fd.path), wanted):  # noqa: PTH116 - a link that only stat() follows
                    return True
        return False
    except PermissionError:
        return _older_than(pid, lock)
    except OSError:
        return False


def _older_than(pid: int, lock: Path) -> bool:
    """For a process whose descriptors are hidden: it began before it wrote the lock, so the pid was not reused."""
    try:
        return bool(psutil.Process(pid).create_time() <= lock.stat().st_mtime + _CLOCK_SLACK_S)
    except (psutil.Error, OSError):
        return False


def _mtime(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def age(moment: float) -> float:
    """Seconds since a moment of the wall clock."""
    return max(0.0, time.time() - moment)
