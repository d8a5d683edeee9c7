"""A 64 MiB float32 tensor from one worker to another on the same host, by each of the tensor backends, in one run.

    python benchmarks/tensor_backends.py [--rounds 5] [--repeat 30] [--backends wire,shm,ray] [--json FILE]

In every round each backend's workers are started, measured and ended while no others run; the order rotates. For `ray`
a cluster must be there: `eval "$(tests/clusters/ray up --store-bytes 1000000000)"`. Medians of:

first_ms    the first hand-over: connections, fresh memory, and for ray the import of Ray
leave_ms    the call that leaves the tensor on its worker and returns the handle
read_ms     the call on the other worker that gets the handle, and touches every page of the tensor
gb_s        both one after the other
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

if not __package__:  # run as a file
    sys.path[0] = str(Path(__file__).parent.parent)

from rich.console import Console
from rich.table import Table

import rolecall
from benchmarks import machine
from benchmarks.peers.ours_engine import Worker
from benchmarks.peers.protocol import TENSOR_BYTES, expect

MEASURES = ("first_ms", "leave_ms", "read_ms", "gb_s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--repeat", type=int, default=30)
    parser.add_argument("--backends", default="wire,shm,ray", help="some of these, separated by commas")
    parser.add_argument("--json", type=Path, help="write every round and the medians to this file")
    options = parser.parse_args()
    backends = options.backends.split(",")
    about = machine.describe()
    seen: dict[str, list[dict[str, float]]] = {backend: [] for backend in backends}
    for number in range(options.rounds):
        turn = number % len(backends)
        for backend in backends[turn:] + backends[:turn]:
            measured = _measured(backend, options.repeat)
            seen[backend].append(measured)
            print(f"round {number}, {backend}: {measured}", file=sys.stderr, flush=True)
    medians = {
        backend: {m: statistics.median(v[m] for v in rounds) for m in MEASURES} for backend, rounds in seen.items()
    }
    if options.json:
        facts = {"machine": about, "bytes": TENSOR_BYTES, "repeat": options.repeat}
        options.json.write_text(json.dumps({**facts, "medians": medians, "rounds": seen}, indent=1))
    _show(medians)


def _measured(backend: Any, repeat: int) -> dict[str, float]:
    with rolecall.scheduler("local", experiment="bench", tensor_backend=backend, quiet=True) as scheduler:
        workers = scheduler.start("worker", 2, cpu=1)
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


def _show(medians: dict[str, dict[str, float]]) -> None:
    table = Table("backend", *MEASURES, *(["vs wire"] if "wire" in medians else []))
    for backend, values in medians.items():
        cells = [f"{values[m]:.3g}" for m in MEASURES]
        if "wire" in medians:
            cells.append(f"{values['gb_s'] / medians['wire']['gb_s']:.2f}x")
        table.add_row(backend, *cells)
    Console(width=None if sys.stdout.isatty() else 120).print(table)


if __name__ == "__main__":
    main()
