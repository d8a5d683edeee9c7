"""Real controllers and the real command line, each a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.checkout import PYTHONPATH


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": PYTHONPATH}


class CommandLine:
    """`rolecall ...` as a process, about runs under one fileroot."""

    def __init__(self, fileroot: Path) -> None:
        self.fileroot = fileroot

    def argv(self, command: str, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "rolecall.cli", command, "--fileroot", str(self.fileroot), *arguments]

    def run(self, command: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        argv = self.argv(command, *arguments)
        return subprocess.run(
            argv, capture_output=True, text=True, env=environment(), stdin=subprocess.DEVNULL, timeout=60, check=False
        )

    def start(self, command: str, *arguments: str) -> subprocess.Popen[str]:
        argv = self.argv(command, *arguments)
        return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment())

    def json(self, command: str, *arguments: str, status: int = 0) -> Any:
        done = self.run(command, *arguments, "--json")
        assert done.returncode == status, done.stderr
        return json.loads(done.stdout)


@pytest.fixture
def cli(tmp_path: Path) -> CommandLine:
    return CommandLine(tmp_path)


class Controller:
    """A running controller and what is known of its run."""

    def __init__(self, process: subprocess.Popen[str], directory: Path) -> None:
        self.process, self.directory = process, directory

    def ask(self, line: str) -> str:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()

    def state(self) -> dict[str, Any]:
        state: dict[str, Any] = json.loads((self.directory / "state.json").read_text())
        return state

    @property
    def run_id(self) -> str:
        return str(self.state()["run_id"])

    def guard_pid(self) -> int:
        return int(self.state()["guards"][0]["pid"])

    def worker_pid(self, worker: str) -> int:
        (pid,) = [w["pid"] for r in self.state()["roles"] for w in r["workers"] if w["id"] == worker]
        return int(pid)

    def end(self) -> None:
        """Lets it end by itself."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(30)

    def kill(self) -> None:
        """SIGKILL, and waits until it and its guard are dead."""
        guard = os.pidfd_open(self.guard_pid())
        try:
            self.process.kill()
            self.process.wait()
            wait_for_exit(guard)
        finally:
            os.close(guard)


def wait_for_exit(pidfd: int) -> None:
    import select

    readable, _, _ = select.select([pidfd], [], [], 20)
    assert readable, "a process that should have ended lives on"


@contextmanager
def running(fileroot: Path, trial: str = "t0") -> Iterator[Controller]:
    """A controller with two actors and a program in each actor's slot, all ready."""
    argv = [sys.executable, "-m", "tests.cli.controller", str(fileroot), trial]
    with subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment()
    ) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == "ready\n"
            yield Controller(process, fileroot / "cli" / trial)
        finally:
            if process.poll() is None and process.stdin is not None and not process.stdin.closed:
                process.stdin.close()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()


@pytest.fixture
def controller(tmp_path: Path) -> Iterator[Controller]:
    with running(tmp_path) as started:
        yield started


@pytest.fixture
def leftover() -> Iterator[Callable[[str], subprocess.Popen[bytes]]]:
    """Starts processes as a run of some id would have left them."""
    started: list[subprocess.Popen[bytes]] = []

    def start(run_id: str) -> subprocess.Popen[bytes]:
        mark = {"ROLECALL_RUN": run_id, "ROLECALL_GUARD": "g0", "ROLECALL_WORKER": "actor/0"}
        argv = [sys.executable, "-c", "import time; print(flush=True); time.sleep(3600)"]
        process = subprocess.Popen(argv, env={**os.environ, **mark}, stdout=subprocess.PIPE)
        started.append(process)
        assert process.stdout is not None and process.stdout.readline()
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()
