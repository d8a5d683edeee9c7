"""What a call costs between two processes over a Unix socket, answered from another thread than the callee's loop.

python benchmarks/call_latency.py [--json] [--loop uvloop|asyncio]

Tensor throughput counts the bytes of both directions: a 64 MiB tensor that goes and comes back is 128 MiB.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import queue
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch

from rolecall.transport.client import Client
from rolecall.transport.loop import IOThread
from rolecall.transport.peer import Incoming, Peer
from rolecall.transport.server import PeerRegistry, Server

TOKEN = "benchmark"
CALLS = 20_000
TENSOR_BYTES = 64 << 20


class EngineThread:
    """One thread that answers with what it was given."""

    def __init__(self) -> None:
        self._work: queue.SimpleQueue[Incoming] = queue.SimpleQueue()
        threading.Thread(target=self._run, daemon=True).start()

    def dispatch(self, incoming: Incoming) -> None:
        self._work.put(incoming)

    def _run(self) -> None:
        while True:
            incoming = self._work.get()
            incoming.finish(incoming.args())


def serve(path: str, uvloop: bool) -> None:
    """The other process; ends with its stdin."""
    with IOThread(uvloop=uvloop) as io:
        thread = EngineThread()

        async def listen() -> Server:
            peers = PeerRegistry(lambda hello: Peer("caller", loop=io.loop, handler=thread))
            server = Server(TOKEN, loop=io.loop, on_peer=peers)
            server.listen_unix(path)
            return server

        server = io.run(listen())
        print("ready", flush=True)
        sys.stdin.read()
        io.run(server.close())
    os._exit(0)  # the thread waits for ever


def seconds(fn: Callable[[], object]) -> float:
    begun = time.perf_counter()
    fn()
    return time.perf_counter() - begun


def measure(peer: Peer) -> dict[str, float]:
    """Runs every measurement over one connection."""

    def one() -> None:
        peer.request("echo", 1).result()

    def pipelined() -> None:
        for call in [peer.request("echo", i) for i in range(CALLS)]:
            call.result()

    async def awaited() -> None:
        async def ask(i: int) -> None:
            await peer.request("echo", i)

        for _ in range(CALLS // 1000):
            await asyncio.gather(*(ask(i) for i in range(1000)))

    for _ in range(500):
        one()
    latencies = sorted(seconds(one) for _ in range(5000))
    tensor = torch.zeros(TENSOR_BYTES // 4)
    round_trips = [seconds(lambda: peer.request("echo", tensor).result()) for _ in range(20)]
    return {
        "latency_p50_us": statistics.median(latencies) * 1e6,
        "latency_p99_us": latencies[int(len(latencies) * 0.99)] * 1e6,
        "pipelined_per_s": CALLS / min(seconds(pipelined) for _ in range(3)),
        "awaited_per_s": CALLS / min(seconds(lambda: asyncio.run(awaited())) for _ in range(3)),
        "tensor_GB_per_s": 2 * TENSOR_BYTES / statistics.median(round_trips) / 1e9,
        "tensor_best_GB_per_s": 2 * TENSOR_BYTES / min(round_trips) / 1e9,
    }


def run(loop: str) -> dict[str, float]:
    """Starts the other process and measures with both sides on `loop`."""
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "s.sock")
        command = [sys.executable, __file__, "--serve", path, "--loop", loop]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            process.stdout.readline()
            with (
                IOThread(uvloop=loop == "uvloop") as io,
                Client(Peer("server", loop=io.loop), [f"unix:{path}"], TOKEN) as client,
            ):
                client.peer.request("echo", 0, timeout=10).result()
                result = measure(client.peer)
            process.communicate()
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--loop", choices=["uvloop", "asyncio"], help="only this event loop")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve, options.loop == "uvloop")
        return
    results = {loop: run(loop) for loop in ([options.loop] if options.loop else ["uvloop", "asyncio"])}
    if options.json:
        print(json.dumps(results, indent=2))
        return
    for loop, numbers in results.items():
        print(loop, *(f"{name}={value:.4g}" for name, value in numbers.items()), sep="\n  ")


if __name__ == "__main__":
    main()
