"""Nothing leaks: hundreds of steps of calls with tensors as handles leave every process as it was."""

from __future__ import annotations

import contextlib
import gc
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

import rolecall
from rolecall import LocalScheduler, Role
from tests.support import sample_engines

pytestmark = pytest.mark.slow("hundreds of steps", seconds=8)

STEPS = 200
WARM_UP = 50
ROWS = 65536  # times 4 float32: 1 MiB
MIB = 1 << 20


@pytest.fixture
def s(tmp_path: Path) -> Iterator[LocalScheduler]:
    with LocalScheduler(experiment="soak", trial="t", fileroot=tmp_path) as scheduler:
        yield scheduler


def measure(processes: dict[str, psutil.Process]) -> dict[str, dict[str, int]]:
    """Memory of its own (private and shared pages counted once), descriptors and threads of each process."""
    gc.collect()
    return {
        name: {"memory": p.memory_full_info().uss, "threads": p.num_threads(), **descriptors(p.pid)}
        for name, p in processes.items()
    }


def descriptors(pid: int) -> dict[str, int]:
    """Descriptors of segments of memory, which a pool keeps for reuse, and all others."""
    names = []
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed since it was listed
            names.append(str(fd.readlink()))
    segments = sum(name.startswith("/memfd:") for name in names)
    return {"segments": segments, "fds": len(names) - segments}


def in_shm() -> int:
    return len(list(Path("/dev/shm").iterdir()))


def step(rollout: Role, actor: Role) -> None:
    """What a training step does: tensors made on two workers, joined, split, read by two others, freed."""
    parts: list[Any] = rollout.call("make", ROWS)
    batch = rolecall.RTensor.cat([part["x"] for part in parts])
    halves = batch.split(ROWS)
    totals = actor.map("total", [(half,) for half in halves])
    assert totals == [ROWS * 4.0] * 2


def test_two_hundred_steps_with_handles_leave_memory_descriptors_and_threads_flat(s: LocalScheduler) -> None:
    """Controller, guard and workers do not grow over hundreds of training steps."""
    rollout = s.start("rollout", replicas=2).with_options(tensors="remote")
    actor = s.start("actor", replicas=2)
    for role in (rollout, actor):
        role.create_engine(sample_engines.Tensors)
    processes = {"controller": psutil.Process(os.getpid()), "guard": psutil.Process(s.inspect().guards[0].pid)}
    processes |= {m.id: psutil.Process(m.pid) for m in s.inspect().workers()}
    for _ in range(WARM_UP):
        step(rollout, actor)
    s.home.flush()
    before, shm = measure(processes), in_shm()
    for _ in range(STEPS):
        step(rollout, actor)
    s.home.flush()
    after = measure(processes)
    for name, seen in after.items():
        # The same number of steps would have left 400 MiB; allocators and arenas may move by a little.
        assert seen["memory"] - before[name]["memory"] < 48 * MIB, (name, before[name], seen)
        assert abs(seen["fds"] - before[name]["fds"]) <= 8, (name, before[name], seen)
        # Two of each segment. Frees that come late in one step add to the pool for good; without reuse 400 were added.
        assert seen["segments"] - before[name]["segments"] <= 64, (name, before[name], seen)
        assert seen["threads"] <= before[name]["threads"] + 2, (name, before[name], seen)
    assert in_shm() == shm
    assert s.home.metrics()["live_shards"] == 0
    assert s.home.metrics()["pending"] == 0
