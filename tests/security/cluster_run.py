"""A real run on a cluster for attacks: where it listens, and everywhere that somebody could look for its token."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from rolecall import Role, Scheduler
from tests.security.live_run import command_line_of, environment_of, mode
from tests.support import sample_engines
from tests.support.worker_processes import processes

LARGEST = 64 << 20  # of a file that is looked through; the object stores of Ray are larger, and no files of ours


@dataclass(frozen=True)
class ClusterRun:
    """A run with a role `actor` whose workers each host an Echo."""

    scheduler: Scheduler
    actor: Role

    @property
    def run_dir(self) -> Path:
        return Path(self.scheduler.run_dir)

    @property
    def runtime_dir(self) -> Path:
        return Path(json.loads((self.run_dir / "state.json").read_text())["runtime_dir"])

    @property
    def token(self) -> str:
        return (self.runtime_dir / "token").read_text()

    @property
    def controller(self) -> str:
        """The controller's listener in the cluster, which guards are told."""
        (address,) = [where for where in self.scheduler.inspect().controller.addresses if where.startswith("tcp:")]
        return address

    @property
    def workers(self) -> dict[str, str]:
        """The workers' listeners by their ids."""
        return {w.id: f"tcp:{w.ip}:{w.worker_ports[0]}" for w in self.actor.workers}

    @property
    def listeners(self) -> dict[str, str]:
        return {"controller": self.controller, **self.workers}

    def bound(self) -> dict[str, set[tuple[str, int]]]:
        """Where this process and the processes of ours on the cluster's nodes listen, by their names.

        The manager's own clients (`srun`, the drivers and actors of Ray) are what they are.
        """
        ours = [psutil.Process(pid) for pid in processes(self.scheduler.run_id)]
        named = [psutil.Process(), *(p for p in ours if p.name().startswith("rc:"))]
        return {p.name() if p.pid != os.getpid() else "controller": _listening(p) for p in named}


def _listening(process: psutil.Process) -> set[tuple[str, int]]:
    return {tuple(c.laddr) for c in process.net_connections("tcp") if c.status == psutil.CONN_LISTEN}


@contextmanager
def cluster_run(make: Callable[..., Scheduler], trial: str = "t", **options: object) -> Iterator[ClusterRun]:
    with make(experiment="security", trial=trial, **options) as scheduler:
        yield with_actors(scheduler)


def with_actors(scheduler: Scheduler) -> ClusterRun:
    actor = scheduler.start("actor", replicas=2, cpu=1, mem=1)
    actor.create_engine(sample_engines.Echo)
    return ClusterRun(scheduler, actor)


def processes_that_show(token: str) -> list[str]:
    """Of all processes on this machine, the managers' daemons among them, by command line or environment."""
    secret = token.encode()
    everybody = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    return [f"{pid}: {command_line_of(pid)!r}" for pid in everybody if secret in command_line_of(pid)] + [
        f"environment of {pid}: {command_line_of(pid)!r}" for pid in everybody if secret in environment_of(pid)
    ]


def files_that_hold(token: str, *folders: Path) -> dict[str, int]:
    """Plain files below folders by name, with their modes."""
    found = {}
    for path in (path for folder in folders for path in folder.rglob("*")):
        try:
            status = path.lstat()
            if stat.S_ISREG(status.st_mode) and status.st_size < LARGEST and token.encode() in path.read_bytes():
                found[path.name] = mode(path)
        except OSError:  # it was removed while we looked
            continue
    return found
