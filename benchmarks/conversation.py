"""One peer's process in one round: asked in JSON lines, ended, and seen to leave nothing."""

from __future__ import annotations

import contextlib
import json
import select
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from benchmarks.environments import ROOT
from benchmarks.family import Leftovers, end_of_family

ANSWER_S = 600
LEAVE_S = 30


class PeerFailed(Exception):
    """A peer could not answer, with its own reason."""


class Conversation:
    """Owns a peer's process. After the `with` block `leftovers` tells what the peer left behind."""

    def __init__(self, peer: str, python: str, log: Path) -> None:
        self.log = log
        self.leftovers: Leftovers | None = None
        with log.open("w") as stderr:
            self.process = subprocess.Popen(
                [python, "-m", f"benchmarks.peers.{peer}_peer"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                cwd=ROOT,
            )

    def ask(self, **request: Any) -> dict[str, Any]:
        """Send one request and wait for its answer; raises PeerFailed with the peer's reason."""
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise PeerFailed(f"the process is gone; see {self.log.name}") from None
        if not select.select([self.process.stdout], [], [], ANSWER_S)[0]:
            raise PeerFailed(f"no answer in {ANSWER_S} s")
        line = self.process.stdout.readline()
        if not line:
            raise PeerFailed(f"the process ended without an answer; see {self.log.name}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise PeerFailed(answer["error"])
        result: dict[str, Any] = answer["ok"]
        return result

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # it is gone already
            self.process.stdin.close()
        try:
            self.process.wait(LEAVE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()
        self.leftovers = end_of_family()
