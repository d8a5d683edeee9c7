"""Ray actors, measured. Tensors go as a user would send them: a torch tensor as argument and as result."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import numpy
import ray

from benchmarks.peers import protocol
from benchmarks.peers.protocol import TENSOR_BYTES, TENSOR_ITEMS, expect, seconds


class Worker:
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

    def ping(self, value: Any) -> Any:
        return value

    def give(self, mark: int) -> Any:
        return self.hold(mark)

    def give_array(self, mark: int) -> Any:
        return self.hold(mark).numpy()

    def read(self, given: Any) -> float:
        """The mark, after touching every page."""
        return float(given[0]) + float(given[1024::1024].sum())


class RayPeer(protocol.Peer):
    """A one-machine Ray with two actors of no CPU share, so that the count of cores limits nothing."""

    def open(self) -> dict[str, Any]:
        self.folder = tempfile.mkdtemp(prefix="bench-")
        begun = time.perf_counter()
        self.start_ray()
        self.workers = self.start(2)
        return {"cold_2_s": time.perf_counter() - begun, "versions": protocol.versions(["ray", "torch"])}

    def start_ray(self) -> None:
        ray.init(
            include_dashboard=False,
            num_cpus=os.cpu_count(),
            log_to_driver=False,
            logging_level="ERROR",
            object_store_memory=2**30,
            _temp_dir=self.folder,
        )

    def start(self, count: int) -> list[Any]:
        actor = ray.remote(num_cpus=0)(Worker)
        workers = [actor.remote() for _ in range(count)]
        ray.get([worker.ping.remote(0) for worker in workers])
        return workers

    def close(self) -> None:
        ray.shutdown()
        shutil.rmtree(self.folder, ignore_errors=True)

    def measure_small_call_p50_ms(self, quick: bool) -> dict[str, Any]:
        worker = self.workers[0]
        return protocol.p50_ms(lambda i: expect(ray.get(worker.ping.remote(i)), i), quick)

    def measure_pipelined_calls_per_s(self, quick: bool) -> dict[str, Any]:
        worker = self.workers[0]

        def burst(count: int) -> None:
            expect(ray.get([worker.ping.remote(i) for i in range(count)]), list(range(count)))

        return protocol.per_second(burst, quick)

    def measure_tensor_echo_gb_s(self, quick: bool) -> dict[str, Any]:
        import torch

        return self.echo(torch.zeros(TENSOR_ITEMS), quick)

    def measure_array_echo_gb_s(self, quick: bool) -> dict[str, Any]:
        return self.echo(numpy.zeros(TENSOR_ITEMS, numpy.float32), quick)

    def echo(self, sent: Any, quick: bool) -> dict[str, Any]:
        worker = self.workers[0]

        def there_and_back(mark: int) -> None:
            sent[0] = mark
            expect(float(ray.get(worker.ping.remote(sent))[0]), float(mark))

        return protocol.gb_per_second(there_and_back, 2 * TENSOR_BYTES, quick)

    def measure_tensor_worker_to_worker_gb_s(self, quick: bool) -> dict[str, Any]:
        return self.hand_over(self.workers[0].give, quick)

    def measure_array_worker_to_worker_gb_s(self, quick: bool) -> dict[str, Any]:
        return self.hand_over(self.workers[0].give_array, quick)

    def hand_over(self, give: Any, quick: bool) -> dict[str, Any]:
        reader = self.workers[1]

        def move(mark: int) -> None:
            expect(ray.get(reader.read.remote(give.remote(mark))), float(mark))

        return protocol.gb_per_second(move, TENSOR_BYTES, quick)

    def measure_start_2_s(self, quick: bool) -> dict[str, Any]:
        return self.start_more(2)

    def measure_start_64_s(self, quick: bool) -> dict[str, Any]:
        return self.start_more(protocol.affordable(64))

    def start_more(self, count: int) -> dict[str, Any]:
        workers: list[Any] = []
        value = seconds(lambda: workers.extend(self.start(count)))
        for worker in workers:
            ray.kill(worker)
        return {"value": value, "workers": count}


if __name__ == "__main__":
    protocol.serve(RayPeer())
