"""A real run for attacks: a LocalScheduler with workers, and where each of its processes listens."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from rolecall import LocalScheduler, Role
from tests.support import sample_engines


@dataclass(frozen=True)
class LiveRun:
    """A run with a role `actor` whose workers each host an Echo."""

    scheduler: LocalScheduler
    actor: Role
    runtime_dir: Path

    @property
    def run_dir(self) -> Path:
        return Path(self.scheduler.run_dir)

    @property
    def token(self) -> str:
        return (self.runtime_dir / "token").read_text()

    @property
    def guard(self) -> str:
        return f"unix:{self.runtime_dir}/g0.sock"

    @property
    def controller(self) -> str:
        return f"unix:{self.runtime_dir}/controller.sock"

    @property
    def worker(self) -> str:
        """The first worker's Unix socket."""
        return f"unix:{self.runtime_dir}/w/actor-0.sock"

    @property
    def worker_tcp(self) -> str:
        return f"tcp:127.0.0.1:{self.actor.workers[0].worker_ports[0]}"

    @property
    def listeners(self) -> dict[str, str]:
        """Every address of this run that somebody could dial, by name."""
        return {
            "worker": self.worker,
            "worker over TCP": self.worker_tcp,
            "guard": self.guard,
            "controller": self.controller,
        }

    def processes(self) -> list[psutil.Process]:
        """This process and all below it that bear the mark of the run: reaper, guard, template, workers, programs."""
        mine = psutil.Process()
        below = [p for p in mine.children(recursive=True) if self._bears(p)]
        return [mine, *below]

    def _bears(self, process: psutil.Process) -> bool:
        try:
            return bool(process.environ().get("ROLECALL_RUN") == self.scheduler.run_id)
        except psutil.Error:
            return False


@contextmanager
def live_run(fileroot: Path, trial: str = "t", replicas: int = 1, **options: Any) -> Iterator[LiveRun]:
    """Starts a run, and ends it with the block."""
    with LocalScheduler(experiment="security", trial=trial, fileroot=fileroot, preload=[], **options) as scheduler:
        actor = scheduler.start("actor", replicas=replicas, cpu=1)
        actor.create_engine(sample_engines.Echo)
        state = json.loads((Path(scheduler.run_dir) / "state.json").read_text())
        yield LiveRun(scheduler, actor, Path(state["runtime_dir"]))


def mode(path: Path) -> int:
    """A file's permission bits."""
    return path.lstat().st_mode & 0o777


def environment_of(pid: int) -> bytes:
    """A process's environment as the kernel shows it; empty when it has ended."""
    return _read(f"/proc/{pid}/environ")


def command_line_of(pid: int) -> bytes:
    return _read(f"/proc/{pid}/cmdline")


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError:
        return b""
