"""What is measured, and what we said we would reach. Data only."""

from __future__ import annotations

from dataclasses import dataclass

OURS, RAY, MONARCH = "ours", "ray", "monarch"


@dataclass(frozen=True)
class Target:
    """A promise: times better than Ray, or a number of the measure's own unit."""

    times_ray: float | None = None
    at_most: float | None = None

    def __str__(self) -> str:
        return f"{self.times_ray:g}x Ray" if self.times_ray is not None else f"<= {self.at_most:g}"

    def met(self, ours: float, times_ray: float | None) -> bool | None:
        """Whether it is kept; None when the peer was not measured."""
        if self.at_most is not None:
            return ours <= self.at_most
        return None if times_ray is None or self.times_ray is None else times_ray >= self.times_ray


@dataclass(frozen=True)
class Measure:
    """One row of the table. `once` measures are heavy and run in the first round alone."""

    name: str
    title: str
    unit: str
    more_is_better: bool = False
    peers: tuple[str, ...] = (OURS, RAY, MONARCH)
    once: bool = False
    from_open: bool = False
    target: Target | None = None

    def times(self, ours: float, peer: float) -> float:
        """How many times better we are; below one is worse."""
        return ours / peer if self.more_is_better else peer / ours


MEASURES = (
    Measure("cold_2_s", "from nothing to two torch workers ready", "s", from_open=True),
    Measure("start_2_s", "two more torch workers ready", "s", target=Target(at_most=0.3)),
    Measure("fork_2_s", "two more by fork", "s", peers=(OURS,), target=Target(at_most=0.2)),
    Measure("small_call_p50_ms", "one small call, p50", "ms", target=Target(times_ray=4)),
    Measure("pipelined_calls_per_s", "pipelined small calls", "1/s", more_is_better=True, target=Target(times_ray=4)),
    Measure(
        "tensor_echo_gb_s",
        "64 MiB float32 tensor, there and back",
        "GB/s",
        more_is_better=True,
        target=Target(times_ray=6),
    ),
    Measure(
        "tensor_worker_to_worker_gb_s",
        "64 MiB float32 tensor from worker to worker",
        "GB/s",
        more_is_better=True,
        target=Target(times_ray=20),
    ),
    Measure(
        "array_echo_gb_s", "the same there and back as numpy array", "GB/s", more_is_better=True, peers=(OURS, RAY)
    ),
    Measure(
        "array_worker_to_worker_gb_s",
        "the same from worker to worker as numpy array",
        "GB/s",
        more_is_better=True,
        peers=(OURS, RAY),
    ),
    Measure(
        "buffer_worker_to_worker_gb_s",
        "the same from worker to worker by Monarch's RDMABuffer",
        "GB/s",
        more_is_better=True,
        peers=(MONARCH,),
    ),
    Measure("fan_out_1_p50_ms", "1 worker called", "ms", peers=(OURS,), once=True),
    Measure("fan_out_8_p50_ms", "8 workers called at once, all results", "ms", peers=(OURS,), once=True),
    Measure("start_64_s", "64 torch workers ready", "s", once=True, target=Target(at_most=3)),
    Measure("fan_out_64_p50_ms", "64 workers called at once, all results", "ms", peers=(OURS,), once=True),
    Measure("controller_mib_per_worker", "controller's memory per worker", "MiB", peers=(OURS,), once=True),
    Measure("controller_idle_percent", "controller's CPU, 64 idle workers", "% of a core", peers=(OURS,), once=True),
    Measure("tree_idle_percent", "whole run's CPU, 64 idle workers", "% of a core", peers=(OURS,), once=True),
    Measure("worker_mib", "a worker's own memory (torch loaded)", "MiB", peers=(OURS,), once=True),
    Measure("fan_out_256_p50_ms", "256 workers called at once, all results", "ms", peers=(OURS,), once=True),
)
