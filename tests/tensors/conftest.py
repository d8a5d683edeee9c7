"""Every test here leaves no descriptor, thread, or file in /dev/shm behind."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from open_files import open_descriptors

from rolecall.tensors.shm import ShmBackend
from rolecall.tensors.store import Store
from rolecall.tensors.wire import WireBackend


def _held() -> tuple[int, set[str], set[str]]:
    gc.collect()
    threads = {t.name for t in threading.enumerate() if not t.name.startswith("asyncio_")}
    return open_descriptors(), threads, {p.name for p in Path("/dev/shm").iterdir()}


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    torch.ones(1 << 16).sum()  # starts torch's own threads before the count
    before = _held()
    yield
    after = _held()
    assert after == before


@pytest.fixture
def store() -> Iterator[Store]:
    """A store as a worker has it."""
    made = Store("actor/0", ["unix:/nowhere"], {"shm": ShmBackend(budget=1 << 28), "wire": WireBackend()}, "shm")
    yield made
    made.close()
