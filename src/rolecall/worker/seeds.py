"""Seeds of a worker: a function of the run's seed, its role and its rank, and of nothing else."""

from __future__ import annotations

import random
import sys
import zlib
from typing import Any


def seed_of(run_seed: int, role: str, rank: int) -> int:
    return zlib.crc32(f"{run_seed}/{role}/{rank}".encode())


def seed_generators(seed: int) -> None:
    """Seeds `random`, and numpy's and torch's global generators where they are imported."""
    random.seed(seed)
    numpy: Any = sys.modules.get("numpy")
    if numpy is not None:
        numpy.random.seed(seed)
    torch: Any = sys.modules.get("torch")
    if torch is not None:
        torch.manual_seed(seed)
