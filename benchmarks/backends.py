"""The backends side by side in one run, and a plain group of Ray actors beside them.

    python benchmarks/backends.py [--rounds 5] [--workers 16] [--only local,slurm,ray,actors] [--json FILE]

In every round each backend is brought up, measured and taken down again while no other one runs; the order rotates.
Slurm and Ray are clusters on this machine, unless SLURM_CONF and RAY_ADDRESS name others. Medians of:

open_s      scheduler made; for Slurm and Ray it has found its cluster, for local its guard has begun
start_s     the role asked for until an engine of every worker, torch imported in it, has answered one call
call_ms     one small call, p50
per_s       pipelined small calls
end_s       the role ended and seen gone
"""

from __future__ import annotations

import contextlib
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

if not __package__:  # run as a file
    sys.path[0] = str(Path(__file__).parent.parent)

from benchmarks import clusters, rounds
from benchmarks.peers.ours_engine import Worker

ACTORS = "actors"
CONTENDERS = ("local", "slurm", "ray", ACTORS)
MEASURES = ("open_s", "start_s", "call_ms", "per_s", "end_s")
CALLS = 2000


def main() -> None:
    parser = rounds.parser(__doc__, CONTENDERS)
    parser.add_argument("--workers", type=int, default=16)
    options = rounds.parsed(parser, CONTENDERS)
    contest = rounds.Contest(MEASURES, "call_ms", "local", {"workers": options.workers})
    measured: dict[str, Callable[[], dict[str, float]]] = {
        name: partial(_actors if name == ACTORS else partial(_backend, name), options.workers) for name in CONTENDERS
    }
    with contextlib.ExitStack() as up:
        if "slurm" in options.only:
            up.enter_context(clusters.slurm())
        if {"ray", ACTORS} & set(options.only):
            up.enter_context(clusters.ray())
        contest.run(measured, options)


def _backend(name: str, workers: int) -> dict[str, float]:
    import rolecall

    begun = time.perf_counter()
    with rolecall.scheduler(name, experiment="bench", quiet=True) as scheduler:
        opened = time.perf_counter()
        role = scheduler.start("worker", workers, cpu=1, mem=1)
        role.create_engine(Worker)
        role.call("ping", 0)
        started = time.perf_counter()
        first = role[0]
        call_ms = _p50_ms(lambda: first.call("ping", 1))
        burst = time.perf_counter()
        for pending in [first.submit("ping", i) for i in range(CALLS)]:
            pending.result()
        per_s = CALLS / (time.perf_counter() - burst)
        ending = time.perf_counter()
        scheduler.delete_workers("worker")
        ended = time.perf_counter()
    return dict(zip(MEASURES, (opened - begun, started - opened, call_ms, per_s, ended - ending), strict=True))


def _actors(workers: int) -> dict[str, float]:
    """The same with nothing but Ray."""
    import ray

    begun = time.perf_counter()
    ray.init(log_to_driver=False, logging_level="ERROR")
    try:
        opened = time.perf_counter()
        actor = ray.remote(num_cpus=1)(Worker)
        group = [actor.remote() for _ in range(workers)]
        ray.get([each.ping.remote(0) for each in group])
        started = time.perf_counter()
        call_ms = _p50_ms(lambda: ray.get(group[0].ping.remote(1)))
        burst = time.perf_counter()
        ray.get([group[0].ping.remote(i) for i in range(CALLS)])
        per_s = CALLS / (time.perf_counter() - burst)
        ending = time.perf_counter()
        for each in group:
            ray.kill(each)
        ended = time.perf_counter()  # Ray says nothing of when they are gone
    finally:
        ray.shutdown()
    return dict(zip(MEASURES, (opened - begun, started - opened, call_ms, per_s, ended - ending), strict=True))


def _p50_ms(call: Callable[[], Any]) -> float:
    times = []
    for _ in range(CALLS):
        begun = time.perf_counter()
        call()
        times.append(time.perf_counter() - begun)
    return statistics.median(times) * 1e3


if __name__ == "__main__":
    main()
