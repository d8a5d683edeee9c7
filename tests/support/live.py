"""A living run as its user sees it, and what its processes say of themselves over HTTP."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rolecall import Scheduler
from tests.support.attacker import send_http


def runtime_dir(s: Scheduler) -> Path:
    return Path(s.inspect().runtime_dir)


def token(s: Scheduler) -> str:
    return (runtime_dir(s) / "token").read_text()


def metrics(s: Scheduler, socket: str) -> dict[str, Any]:
    """The numbers of a process of the run on this machine, by its socket below the runtime directory."""
    answer = send_http(f"unix:{runtime_dir(s) / socket}", "GET", "/metrics?format=json", token=token(s))
    assert answer.status == 200, answer.body
    return dict(json.loads(answer.body))


def ports_leased(s: Scheduler) -> int:
    """By all guards that own workers."""
    guards = {worker.guard for worker in s.inspect().workers()} or {guard.id for guard in s.inspect().guards}
    return sum(int(metrics(s, f"{guard}.sock")["ports_leased"]) for guard in guards)


def shards(s: Scheduler, socket: str) -> dict[str, int]:
    """The numbers of a worker's store of tensors."""
    return dict(metrics(s, socket)["store"])
