"""What a measured runtime is asked, and how it answers: JSON lines on standard input and output.

    {"do": "open"}                                -> {"ok": {"cold_2_s": 4.2, "versions": {...}}}
    {"do": "measure", "name": "...", "quick": false} -> {"ok": {"value": 1.0, ...}}
    {"do": "close"}                               -> {"ok": {}}

The peer knows its runtime and nothing of rounds, medians or the other peers. It imports only the standard library, so
that it runs in any peer's environment.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

TENSOR_ITEMS = 16 * 1024 * 1024  # float32: 64 MiB
TENSOR_BYTES = TENSOR_ITEMS * 4
TORCH_WORKER_MIB = 250  # what a cold worker with torch keeps for itself, rounded up
MEMORY_KEPT_MIB = 3000  # left to everything else on the machine


class Peer(ABC):
    """A runtime with two torch workers up, between `open` and `close`."""

    @abstractmethod
    def open(self) -> dict[str, Any]:
        """Bring the runtime up with two torch workers; `cold_2_s` is how long that took."""

    @abstractmethod
    def close(self) -> None:
        """Take everything down; the runner checks that nothing is left."""

    def measure(self, name: str, quick: bool) -> dict[str, Any]:
        """Run the measure of that name, `{}` when the runtime has none."""
        method: Callable[[bool], dict[str, Any]] | None = getattr(self, f"measure_{name}", None)
        return method(quick) if method is not None else {}


def serve(peer: Peer) -> None:
    """Answer commands until standard input ends."""
    requests, replies = sys.stdin, os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what a runtime prints must not end up between the replies
    for line in requests:
        replies.write(json.dumps(answer(peer, json.loads(line))) + "\n")


def answer(peer: Peer, request: dict[str, Any]) -> dict[str, Any]:
    try:
        if request["do"] == "open":
            return {"ok": peer.open()}
        if request["do"] == "measure":
            return {"ok": peer.measure(request["name"], request["quick"])}
        peer.close()
        return {"ok": {}}
    except Exception as error:  # the runner goes on with the other measures and shows this one's reason
        traceback.print_exc()
        return {"error": f"{type(error).__name__}: {error}"[:2000]}


def seconds(run: Callable[[], Any]) -> float:
    begun = time.perf_counter()
    run()
    return time.perf_counter() - begun


def p50_ms(call: Callable[[int], Any], quick: bool) -> dict[str, float]:
    """Median milliseconds of one call after another, with the tail beside it."""
    for i in range(50):
        call(i)
    times = sorted(seconds(lambda i=i: call(i)) for i in range(100 if quick else 500))  # type: ignore[misc]
    return {"value": statistics.median(times) * 1e3, "p99_ms": times[int(len(times) * 0.99)] * 1e3}


def per_second(burst: Callable[[int], Any], quick: bool) -> dict[str, float]:
    """Calls a second when many are under way at once; `burst(n)` sends n and waits for all."""
    burst(200)
    count = 1000 if quick else 3000
    return {"value": count / seconds(lambda: burst(count)), "calls": count}


def gb_per_second(move: Callable[[int], Any], moved_bytes: int, quick: bool) -> dict[str, Any]:
    """Gigabytes (1e9) a second, the median of some transfers after one that warms up."""
    move(0)
    times = [seconds(lambda i=i: move(i)) for i in range(1, 4 if quick else 8)]  # type: ignore[misc]
    return {"value": moved_bytes / statistics.median(times) / 1e9, "seconds": times}


def expect(seen: object, wanted: object) -> None:
    """A wrong answer is no measurement."""
    if seen != wanted:
        raise ValueError(f"the worker answered {seen!r} instead of {wanted!r}")


def affordable(count: int, each_mib: int = TORCH_WORKER_MIB) -> int:
    """How many of `count` workers fit into the memory that is free now."""
    fields = dict(line.split(":") for line in open("/proc/meminfo", encoding="ascii"))  # noqa: SIM115, PTH123
    free_mib = int(fields["MemAvailable"].split()[0]) // 1024
    return max(1, min(count, (free_mib - MEMORY_KEPT_MIB) // each_mib))


def versions(modules: Sequence[str]) -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in modules} | {"python": sys.version.split()[0]}
