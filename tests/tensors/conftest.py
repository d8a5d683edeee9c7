"""Every test here leaves no descriptor, thread, or file in /dev/shm behind, every file no process."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch

from rolecall.tensors.backends.shm import ShmBackend
from rolecall.tensors.backends.wire import WireBackend
from rolecall.tensors.store import Store
from tests.tensors.open_files import open_descriptors

torch.set_num_threads(1)  # on a busy machine torch's threads spin for each other longer than the tests take


@pytest.fixture(autouse=True, scope="session")
def frozen() -> None:
    """What modules hold is no garbage of a test; collections that need not look at it take a hundredth of the time."""
    gc.collect()
    gc.freeze()


def _held() -> tuple[int, set[str], set[str]]:
    gc.collect()
    threads = {t.name for t in threading.enumerate() if not t.name.startswith("asyncio_")}
    return open_descriptors(), threads, {p.name for p in Path("/dev/shm").iterdir()}


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """As for all tests, and descriptors too; but a file's workers may serve all its tests."""
    before = _held()
    yield
    assert _held() == before


@pytest.fixture(autouse=True, scope="module")
def no_process_left() -> Iterator[None]:
    """Set up before a file's workers, hence looked at after their end."""
    before = psutil.Process().children(recursive=True)  # a cluster that other tests of this session share
    yield
    assert [child for child in psutil.Process().children(recursive=True) if child not in before] == []


@pytest.fixture
def store() -> Iterator[Store]:
    """A store as a worker has it."""
    made = Store("actor/0", ["unix:/nowhere"], {"shm": ShmBackend(budget=1 << 28), "wire": WireBackend()}, "shm")
    yield made
    made.close()
