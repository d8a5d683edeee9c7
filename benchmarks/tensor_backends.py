"""A 64 MiB float32 tensor from one worker to another by each of the tensor backends, in one run.

    python benchmarks/tensor_backends.py [--rounds 5] [--repeat 30] [--only wire,shm,ray] [--json FILE]

`wire`, `shm` and `ray` are between workers of one host. `wire-hosts` and `ray-hosts` are between two nodes of a Ray
cluster, each with an object store of its own: Ray copies the tensor from store to store, and the wire goes by TCP. In
every round each contender's workers are started, measured and ended while no others run; the order rotates. The
cluster's hosts are network namespaces of this machine (root is needed), unless RAY_ADDRESS names others. Medians of:

first_ms    the first hand-over: connections, fresh memory, and for ray the import of Ray
leave_ms    the call that leaves the tensor on its worker and returns the handle
read_ms     the call on the other worker that gets the handle, and touches every page of the tensor
gb_s        both one after the other
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

import rolecall
from benchmarks import clusters, rounds
from benchmarks.peers.ours_engine import Worker
from benchmarks.peers.protocol import TENSOR_BYTES, expect

HOSTS = "-hosts"
CONTENDERS = ("wire", "shm", "ray", "wire" + HOSTS, "ray" + HOSTS)
MEASURES = ("first_ms", "leave_ms", "read_ms", "gb_s")
STORE_BYTES = 1_000_000_000
WHOLE_NODE: dict[str, Any] = {"cpu": 1, "gpu": 4}  # of the tests' cluster, so that two workers are on two nodes
REPEAT, QUICK_REPEAT = 30, 10


def main() -> None:
    parser = rounds.parser(__doc__, CONTENDERS)
    parser.add_argument("--repeat", type=int, help=f"hand-overs in a round ({REPEAT}; with --quick {QUICK_REPEAT})")
    options = rounds.parsed(parser, CONTENDERS)
    repeat = options.repeat or (QUICK_REPEAT if options.quick else REPEAT)
    contest = rounds.Contest(MEASURES, "gb_s", "wire", {"bytes": TENSOR_BYTES, "repeat": repeat})
    measured: dict[str, Callable[[], dict[str, float]]] = {
        name: partial(_measured, name, repeat) for name in CONTENDERS
    }
    with contextlib.ExitStack() as up:
        if set(options.only) - {"wire", "shm"}:
            up.enter_context(clusters.ray("--hosts", f"--store-bytes={STORE_BYTES}"))
        contest.run(measured, options)


def _measured(contender: str, repeat: int) -> dict[str, float]:
    backend: Any = contender.removesuffix(HOSTS)
    where, size = ("local", {"cpu": 1}) if backend == contender else ("ray", WHOLE_NODE)
    with rolecall.scheduler(where, experiment="bench", tensor_backend=backend, quiet=True) as scheduler:
        workers = scheduler.start("worker", 2, **size)
        workers.create_engine(Worker)
        expect(workers.call("ping", 0), [0, 0])
        giver, reader = workers[0].with_options(tensors="remote"), workers[1]
        giver.with_options(tensors="local").call("give", 0)  # makes the tensor that is copied from then on
        left, read = [], []
        for mark in range(repeat + 1):
            begun = time.perf_counter()
            handle = giver.call("give", mark)
            between = time.perf_counter()
            expect([shard.backend for shard in handle.shards], [backend])
            expect(reader.call("read", handle), float(mark))
            ended = time.perf_counter()
            left.append((between - begun) * 1e3)
            read.append((ended - between) * 1e3)
            del handle
            scheduler.home.flush()  # as a step's end does
    both = statistics.median(a + b for a, b in zip(left[1:], read[1:], strict=True))
    values = (left[0] + read[0], statistics.median(left[1:]), statistics.median(read[1:]), TENSOR_BYTES / both / 1e6)
    return {name: round(value, 3) for name, value in zip(MEASURES, values, strict=True)}


if __name__ == "__main__":
    main()
