"""Engines of the tests of Ray's object store."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from pathlib import Path
from typing import Any

import msgspec
import torch

from rolecall.errors import ShardNotFoundError
from rolecall.tensors.dtypes import native_dtype, row_major
from rolecall.tensors.service import DataService
from rolecall.tensors.shard import Shard, binding
from rolecall.tensors.store import Store
from tests.tensors.open_files import open_descriptors


def random_bits(dtype: str, nbytes: int, seed: int) -> torch.Tensor:
    """A flat tensor of any bits that the dtype can have."""
    generator = torch.Generator().manual_seed(seed)
    high = 2 if dtype == "bool" else 256
    return torch.randint(high, (nbytes,), dtype=torch.uint8, generator=generator).view(native_dtype(dtype))


def digest(tensor: torch.Tensor) -> str:
    return f"{tensor.dtype} {list(tensor.shape)} {hashlib.sha256(row_major(tensor)).hexdigest()}"


class Tensors:
    """Makes tensors, reads them, changes them."""

    def __init__(self) -> None:
        self.left: dict[str, torch.Tensor] = {}

    def random(self, dtypes: list[str], nbytes: int) -> list[torch.Tensor]:
        return [random_bits(dtype, nbytes, seed) for seed, dtype in enumerate(dtypes)]

    def rows(self, rows: int, columns: int, value: float = 1.0) -> torch.Tensor:
        return torch.full((rows, columns), value)

    def strided(self) -> list[torch.Tensor]:
        """What does not lie in memory as it reads: transposed, conjugated, negated, a slice."""
        made = torch.arange(1 << 18, dtype=torch.float32).view(512, 512)
        wave = torch.complex(made, made + 1)
        return [made.t(), wave.conj(), wave.conj().imag, made[:, 3:500]]

    def digests(self, tensors: list[torch.Tensor]) -> list[str]:
        return [digest(tensor) for tensor in tensors]

    def total(self, tensor: torch.Tensor) -> float:
        return float(tensor.double().sum())

    async def total_in_a_task(self, tensor: torch.Tensor) -> float:
        return float(tensor.double().sum())

    def spoil(self, tensor: torch.Tensor) -> float:
        tensor.zero_()
        return self.total(tensor)

    def prefer(self, backend: str) -> None:
        self._store().prefer(backend)

    def fetch_at(self, plain: list[Any], where: dict[str, Any]) -> str:
        """What reading a shard comes to when its place says something else in these points."""
        shard = msgspec.convert(plain, Shard)
        shard.where |= where
        backend = self._store().backends["ray"]
        try:
            return "asks the owner" if backend.fetch([shard]) == [None] else "read"
        except ShardNotFoundError as e:
            return str(e)

    def lose(self, plain: list[Any]) -> None:
        """Lets go of a shard's object behind the store's back, as an eviction does."""
        self._store().backends["ray"].delete([msgspec.convert(plain, Shard)])

    def in_use(self) -> int:
        """Bytes in the whole cluster's object stores."""
        import ray

        name = "object_store_memory"
        return int(ray.cluster_resources()[name] - ray.available_resources()[name])

    def costs(self) -> dict[str, Any]:
        return {
            "backend": self._store().metrics()["backends"]["ray"],
            "descriptors": open_descriptors(),
            "threads": threading.active_count(),
            "tasks": len(list(Path("/proc/self/task").iterdir())),
        }

    def join_ray(self) -> None:
        import ray

        ray.init(address=os.environ["RAY_ADDRESS"], log_to_driver=False, logging_level="ERROR")

    def leave_ray(self) -> None:
        import ray

        ray.shutdown()

    def pid(self) -> int:
        return os.getpid()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    def _store(self) -> Store:
        service = binding.get()
        assert isinstance(service, DataService)
        return service.store
