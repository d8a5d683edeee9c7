"""What it costs to leave a tensor on a worker and have it on another one of the same host.

    python benchmarks/tensor_path.py [--mib 64] [--repeat 30] [--json]

Two worker processes, each with a store, and this process as the controller. Every number is the median over `--repeat`:

put_cold, put_warm      copy into a new segment; into one that the pool reuses
map, read               map the segment in another process; map it and sum every element
worker_to_worker        call on A (which puts), handle to B, call on B (which maps), both answers seen; GB/s
worker_to_worker_wire   the same through the connection, without shared memory
there_and_back          tensor in the call's arguments, tensor in the answer, whole both ways; GB/s of the one-way size
small_handle            one of 384 handles of 32 bytes each, at the receiver: decoded, fetched over the connection,
                        put into the arguments; microseconds
copy                    a plain copy of the same bytes within one process: the bound
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from rolecall.tensors import functions
from rolecall.tensors.backends.shm import ShmBackend
from rolecall.tensors.backends.wire import WireBackend
from rolecall.tensors.connections import Connections
from rolecall.tensors.fetch import Cache, Fetcher
from rolecall.tensors.handle import RTensor
from rolecall.tensors.lifetime import Home
from rolecall.tensors.service import DataService
from rolecall.tensors.shard import binding
from rolecall.tensors.store import Store
from rolecall.transport.loop import IOThread
from rolecall.transport.peer import Incoming, Peer
from rolecall.transport.server import Server

TOKEN = "b" * 64
SMALL_HANDLES = 384


class Worker:
    """An engine with one tensor, on a thread of its own."""

    def __init__(self, store: Store, shm: ShmBackend, connections: Connections) -> None:
        self.store = store
        self.service = DataService(store, Fetcher(connections, Cache(0), {"shm": shm}, store))
        binding.set(self.service)
        self.thread, self.data = ThreadPoolExecutor(1), ThreadPoolExecutor(1)
        self.tensor = torch.empty(0)
        self.received_s = 0.0  # what the arguments of the last call took

    def dispatch(self, incoming: Incoming) -> None:
        pool = self.data if incoming.method.startswith("data.") else self.thread
        pool.submit(self._answer, incoming)

    def _answer(self, incoming: Incoming) -> None:
        try:
            if incoming.method.startswith("data."):
                incoming.finish(self.service.answer(incoming.method, incoming.args()), stable=True)
            else:
                begin = time.perf_counter()
                value = functions.localized(incoming.received())
                self.received_s = time.perf_counter() - begin
                incoming.finish(getattr(self, incoming.method)(value))
        except BaseException as e:
            incoming.fail(e)

    def prepare(self, nbytes: int) -> None:
        self.tensor = torch.randn(nbytes // 4)

    def backend(self, name: str) -> None:
        self.store.prefer(name)

    def leave(self, _: Any) -> Any:
        return functions.remotize(self.tensor)

    def leave_small(self, count: int) -> Any:
        return functions.remotize([torch.ones(8) for _ in range(count)])

    def take_small(self, tensors: list[torch.Tensor]) -> float:
        return self.received_s / len(tensors)

    def take(self, tensor: torch.Tensor) -> int:
        return len(tensor)

    def give(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor

    def put_cost(self, repeat: int) -> dict[str, float]:
        shards = []
        cold = median(lambda: shards.append(self.store.put(self.tensor)), min(repeat, 4))
        self.store.clear()
        ids: list[str] = []

        def again() -> None:
            ids.append(self.store.put(self.tensor).id)

        warm = median(again, repeat, after=lambda: self.store.delete([ids.pop()]))
        target = torch.empty_like(self.tensor)
        return {"put_cold_ms": cold, "put_warm_ms": warm, "copy_ms": median(lambda: target.copy_(self.tensor), repeat)}


def serve(name: str, path: str) -> None:
    """A worker process, until standard input ends."""
    io = IOThread()
    shm = ShmBackend(budget=2 << 30)
    store = Store(name, [f"unix:{path}"], {"shm": shm, "wire": WireBackend()}, "shm")
    worker = Worker(store, shm, Connections(TOKEN, loop=io.loop))
    peers: dict[str, Peer] = {}

    async def listen() -> None:
        def on_peer(hello: Any) -> Peer:
            return peers.setdefault(hello.session, Peer("peer", loop=io.loop, handler=worker))

        Server(TOKEN, loop=io.loop, on_peer=on_peer).listen_unix(path)

    io.run(listen())
    print("ready", flush=True)
    sys.stdin.read()
    os._exit(0)


def median(run: Callable[[], Any], repeat: int, after: Callable[[], Any] = lambda: None) -> float:
    """Milliseconds."""
    times = []
    for _ in range(repeat):
        begin = time.perf_counter()
        run()
        times.append((time.perf_counter() - begin) * 1e3)
        after()
    return statistics.median(times)


class Controller:
    def __init__(self, folder: Path) -> None:
        self.io = IOThread()
        self.folder = folder
        self.connections = Connections(TOKEN, loop=self.io.loop, context=self)
        self.home = Home(Fetcher(self.connections, Cache(0), {"shm": ShmBackend()}))
        self.adopt = self.home.adopt
        self.processes = [self._start(name) for name in "ab"]

    def _start(self, name: str) -> subprocess.Popen[bytes]:
        argv = [sys.executable, __file__, "--serve", name, str(self.folder / name)]
        process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        return process

    def call(self, name: str, method: str, value: Any = None) -> Any:
        return self.connections(name, (f"unix:{self.folder / name}",)).request(method, value).result()

    def move(self) -> None:
        self.call("b", "take", self.call("a", "leave"))

    def settle(self) -> None:
        """Frees what was moved, as a step's end does."""
        gc.collect()
        self.home.flush()

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.communicate()
        self.home.close()
        self.connections.close()
        self.io.close()


def measure(nbytes: int, repeat: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        controller = Controller(Path(folder))
        try:
            return _measure(controller, nbytes, repeat)
        finally:
            controller.close()


def _measure(c: Controller, nbytes: int, repeat: int) -> dict[str, float]:
    for name in "ab":
        c.call(name, "prepare", nbytes)
    out: dict[str, float] = c.call("a", "put_cost", repeat)
    out |= _reading(c.call("a", "leave"), repeat)
    c.settle()
    c.move()
    c.settle()
    out["worker_to_worker_gb_s"] = nbytes / 1e6 / median(c.move, repeat, after=c.settle)
    c.call("a", "backend", "wire")
    out["worker_to_worker_wire_gb_s"] = nbytes / 1e6 / median(c.move, repeat, after=c.settle)
    small = c.call("a", "leave_small", SMALL_HANDLES)
    out["small_handle_us"] = 1e6 * statistics.median(c.call("b", "take_small", small) for _ in range(repeat))
    tensor = torch.randn(nbytes // 4)
    out["there_and_back_gb_s"] = nbytes / 1e6 / median(lambda: c.call("b", "give", tensor), repeat)
    out["copy_gb_s"] = nbytes / 1e6 / out["copy_ms"]
    return {name: round(value, 3) for name, value in out.items()}


def _reading(handle: RTensor, repeat: int) -> dict[str, float]:
    return {"map_ms": median(handle.localize, repeat), "read_ms": median(lambda: handle.localize().sum(), repeat)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, default=64)
    parser.add_argument("--repeat", type=int, default=30)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--serve", nargs=2, metavar=("NAME", "SOCKET"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(*options.serve)
    result = {"mib": options.mib, "repeat": options.repeat, **measure(options.mib << 20, options.repeat)}
    if options.json:
        print(json.dumps(result))
    else:
        print("\n".join(f"{name:28} {value}" for name, value in result.items()))


if __name__ == "__main__":
    main()
