"""This runtime, measured through its public interface, with the local scheduler."""

from __future__ import annotations

import shutil
import tempfile
import time
from typing import Any

import psutil
import torch

import rolecall
from benchmarks.peers import protocol
from benchmarks.peers.protocol import TENSOR_BYTES, TENSOR_ITEMS, expect, seconds

ENGINE = "benchmarks.peers.ours_engine.Worker"
FORKED_WORKER_MIB = 60
IDLE_S = 5.0


class OursPeer(protocol.Peer):
    """One local scheduler; roles come and go in it."""

    def open(self) -> dict[str, Any]:
        self.folder = tempfile.mkdtemp(prefix="bench-")
        self.crowd: Any = None
        begun = time.perf_counter()
        self.scheduler = rolecall.scheduler("local", experiment="bench", trial="t0", fileroot=self.folder)
        self.pair = self.start("pair", 2)
        return {"cold_2_s": time.perf_counter() - begun, "versions": protocol.versions(["rolecall", "torch"])}

    def start(self, role: str, count: int) -> Any:
        workers = self.scheduler.start(role, replicas=count, cpu=1)
        workers.create_engine(ENGINE)
        expect(workers.call("ping", 0), [0] * count)
        return workers

    def close(self) -> None:
        self.scheduler.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def measure_small_call_p50_ms(self, quick: bool) -> dict[str, Any]:
        worker = self.pair[0]
        return protocol.p50_ms(lambda i: expect(worker.call("ping", i), i), quick)

    def measure_pipelined_calls_per_s(self, quick: bool) -> dict[str, Any]:
        worker = self.pair[0]

        def burst(count: int) -> None:
            pending = [worker.submit("ping", i) for i in range(count)]
            expect([call.result() for call in pending], list(range(count)))

        return protocol.per_second(burst, quick)

    def measure_tensor_echo_gb_s(self, quick: bool) -> dict[str, Any]:
        return self.echo(torch.zeros(TENSOR_ITEMS), quick)

    def measure_array_echo_gb_s(self, quick: bool) -> dict[str, Any]:
        return self.echo(torch.zeros(TENSOR_ITEMS).numpy(), quick)

    def echo(self, sent: Any, quick: bool) -> dict[str, Any]:
        worker = self.pair[0]

        def there_and_back(mark: int) -> None:
            sent[0] = mark
            expect(float(worker.call("ping", sent)[0]), float(mark))

        return protocol.gb_per_second(there_and_back, 2 * TENSOR_BYTES, quick)

    def measure_tensor_worker_to_worker_gb_s(self, quick: bool) -> dict[str, Any]:
        return self.hand_over("give", quick)

    def measure_array_worker_to_worker_gb_s(self, quick: bool) -> dict[str, Any]:
        return self.hand_over("give_array", quick)

    def hand_over(self, give: str, quick: bool) -> dict[str, Any]:
        giver, reader = self.pair[0].with_options(tensors="remote"), self.pair[1]
        return protocol.gb_per_second(
            lambda mark: expect(reader.call("read", giver.call(give, mark)), float(mark)), TENSOR_BYTES, quick
        )

    def measure_start_2_s(self, quick: bool) -> dict[str, Any]:
        value = seconds(lambda: self.start("more", 2))
        self.scheduler.delete_workers("more")
        return {"value": value}

    def measure_fork_2_s(self, quick: bool) -> dict[str, Any]:
        value = seconds(lambda: self.pair.fork("two-more"))
        self.scheduler.delete_workers("two-more")
        return {"value": value}

    def measure_start_64_s(self, quick: bool) -> dict[str, Any]:
        self.drop_crowd()
        value = seconds(lambda: self.gather_crowd(64))
        return {"value": value, "workers": len(self.crowd)}

    def gather_crowd(self, wanted: int) -> Any:
        """A role of that many workers, kept until another number is asked for."""
        count = protocol.affordable(wanted, FORKED_WORKER_MIB)
        if self.crowd is None or len(self.crowd) != count:
            self.drop_crowd()
            self.mib_before = psutil.Process().memory_info().rss / 2**20
            self.crowd = self.start("crowd", count)
        return self.crowd

    def drop_crowd(self) -> None:
        if self.crowd is not None:
            self.scheduler.delete_workers("crowd")
            self.crowd = None

    def fan_out(self, wanted: int, quick: bool) -> dict[str, Any]:
        crowd = self.gather_crowd(wanted)
        expected = len(crowd)
        result: dict[str, Any] = protocol.p50_ms(lambda i: expect(crowd.call("ping", i), [i] * expected), quick)
        return result | {"workers": expected}

    def measure_fan_out_1_p50_ms(self, quick: bool) -> dict[str, Any]:
        return self.fan_out(1, quick)

    def measure_fan_out_8_p50_ms(self, quick: bool) -> dict[str, Any]:
        return self.fan_out(8, quick)

    def measure_fan_out_64_p50_ms(self, quick: bool) -> dict[str, Any]:
        return self.fan_out(64, quick)

    def measure_fan_out_256_p50_ms(self, quick: bool) -> dict[str, Any]:
        return self.fan_out(256, quick)

    def measure_controller_mib_per_worker(self, quick: bool) -> dict[str, Any]:
        self.scheduler_idle()
        crowd = self.gather_crowd(64)
        return {"value": (psutil.Process().memory_info().rss / 2**20 - self.mib_before) / len(crowd)}

    def scheduler_idle(self) -> None:
        """Let what a start leaves to do be done, so that the measures of rest see rest."""
        time.sleep(1.0)

    def measure_controller_idle_percent(self, quick: bool) -> dict[str, Any]:
        return self.idle_percent([psutil.Process()])

    def measure_tree_idle_percent(self, quick: bool) -> dict[str, Any]:
        self.gather_crowd(64)
        return self.idle_percent([psutil.Process(), *psutil.Process().children(recursive=True)])

    def idle_percent(self, processes: list[psutil.Process]) -> dict[str, Any]:
        workers = len(self.gather_crowd(64))
        self.scheduler_idle()
        before = cpu_seconds(processes)
        time.sleep(IDLE_S)
        return {"value": (cpu_seconds(processes) - before) / IDLE_S * 100, "workers": workers}

    def measure_worker_mib(self, quick: bool) -> dict[str, Any]:
        pids = self.gather_crowd(64).call("process_id")
        infos = [psutil.Process(pid).memory_full_info() for pid in pids]
        own = sum(info.uss for info in infos) / len(infos) / 2**20
        return {"value": own, "pss_mib": sum(info.pss for info in infos) / len(infos) / 2**20}


def cpu_seconds(processes: list[psutil.Process]) -> float:
    """User and system time of these processes together, in seconds."""
    total = 0.0
    for process in processes:
        times = process.cpu_times()
        total += times.user + times.system
    return total


if __name__ == "__main__":
    protocol.serve(OursPeer())
