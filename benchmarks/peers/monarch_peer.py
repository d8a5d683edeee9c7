"""Monarch actors, measured. One process mesh of two; from worker to worker an actor calls the other one directly."""

from __future__ import annotations

import time
from typing import Any

from monarch.actor import Actor, endpoint, shutdown_context, this_host

from benchmarks.peers import protocol
from benchmarks.peers.protocol import TENSOR_BYTES, TENSOR_ITEMS, expect, seconds


class Worker(Actor):
    """What every peer's worker does: answer, echo, give a tensor, read one."""

    def __init__(self) -> None:
        import torch

        torch.set_num_threads(1)
        self.held: Any = None

    def hold(self, mark: int) -> Any:
        """The worker's tensor, made when it is first asked for, with this mark in it."""
        import torch

        if self.held is None:
            self.held = torch.zeros(TENSOR_ITEMS)
        self.held[0] = mark
        return self.held

    @endpoint
    async def ping(self, value: Any) -> Any:
        return value

    @endpoint
    async def give(self, mark: int) -> Any:
        return self.hold(mark)

    @endpoint
    async def read_from(self, giver: Any, mark: int) -> float:
        """The mark, after fetching the tensor and touching every page."""
        given = await giver.give.call_one(mark)
        return float(given[0]) + float(given[1024::1024].sum())

    @endpoint
    async def buffer(self) -> Any:
        """A view of the held tensor that others may read directly; made once."""
        import torch
        from monarch.rdma import RDMABuffer

        self.view = RDMABuffer(self.hold(0).view(torch.uint8))
        self.room = torch.empty(TENSOR_ITEMS)
        return self.view

    @endpoint
    async def mark(self, mark: int) -> None:
        """Change the held tensor, so that a reader can tell this transfer from the last one."""
        self.hold(mark)

    @endpoint
    async def read_buffer(self, giver: Any, buffer: Any, mark: int) -> float:
        import torch

        await giver.mark.call_one(mark)
        await buffer.read_into(self.room.view(torch.uint8))
        return float(self.room[0]) + float(self.room[1024::1024].sum())


class MonarchPeer(protocol.Peer):
    """A process mesh on this host."""

    def open(self) -> dict[str, Any]:
        begun = time.perf_counter()
        self.host = this_host()
        self.mesh, actors = self.start(2)
        cold_2_s = time.perf_counter() - begun
        self.workers = [actors.slice(procs=i) for i in range(2)]
        return {"cold_2_s": cold_2_s, "versions": protocol.versions(["torchmonarch", "torch"])}

    def start(self, count: int) -> tuple[Any, Any]:
        mesh = self.host.spawn_procs(per_host={"procs": count})
        actors = mesh.spawn("worker", Worker)
        actors.ping.call(0).get()
        return mesh, actors

    def close(self) -> None:
        self.mesh.stop().get()
        shutdown_context().get()

    def measure_small_call_p50_ms(self, quick: bool) -> dict[str, Any]:
        worker = self.workers[0]
        return protocol.p50_ms(lambda i: expect(worker.ping.call_one(i).get(), i), quick)

    def measure_pipelined_calls_per_s(self, quick: bool) -> dict[str, Any]:
        worker = self.workers[0]

        def burst(count: int) -> None:
            pending = [worker.ping.call_one(i) for i in range(count)]
            expect([call.get() for call in pending], list(range(count)))

        return protocol.per_second(burst, quick)

    def measure_tensor_echo_gb_s(self, quick: bool) -> dict[str, Any]:
        import torch

        worker, sent = self.workers[0], torch.zeros(TENSOR_ITEMS)

        def there_and_back(mark: int) -> None:
            sent[0] = mark
            expect(float(worker.ping.call_one(sent).get()[0]), float(mark))

        return protocol.gb_per_second(there_and_back, 2 * TENSOR_BYTES, quick)

    def measure_tensor_worker_to_worker_gb_s(self, quick: bool) -> dict[str, Any]:
        giver, reader = self.workers

        def move(mark: int) -> None:
            expect(reader.read_from.call_one(giver, mark).get(), float(mark))

        return protocol.gb_per_second(move, TENSOR_BYTES, quick)

    def measure_buffer_worker_to_worker_gb_s(self, quick: bool) -> dict[str, Any]:
        """Its own way for large data: a registered buffer read into memory that is there already."""
        giver, reader = self.workers
        buffers = [worker.buffer.call_one().get() for worker in self.workers]

        def move(mark: int) -> None:
            expect(reader.read_buffer.call_one(giver, buffers[0], mark).get(), float(mark))

        return protocol.gb_per_second(move, TENSOR_BYTES, quick)

    def measure_start_2_s(self, quick: bool) -> dict[str, Any]:
        return self.start_more(2)

    def measure_start_64_s(self, quick: bool) -> dict[str, Any]:
        return self.start_more(protocol.affordable(64))

    def start_more(self, count: int) -> dict[str, Any]:
        begun: list[tuple[Any, Any]] = []
        value = seconds(lambda: begun.append(self.start(count)))
        begun[0][0].stop().get()
        return {"value": value, "workers": count}


if __name__ == "__main__":
    protocol.serve(MonarchPeer())
