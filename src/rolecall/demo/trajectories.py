"""Batches of trajectories as handles: joined over the workers that made them, divided over those that use them.

Nothing here touches a byte; the tensors stay on the rollout workers until an actor reads its share.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rolecall import RTensor

Batch = dict[str, RTensor]


def joined(parts: Sequence[dict[str, Any]]) -> Batch:
    """One batch from every worker's; whatever is no handle is left out."""
    keys = [key for key, value in parts[0].items() if isinstance(value, RTensor)]
    return {key: RTensor.cat([part[key] for part in parts]) for key in keys}


def divided(batch: Batch, count: int) -> list[Batch]:
    """`count` batches of equally many trajectories, or nearly so."""
    columns = {key: handle.chunk(count) for key, handle in batch.items()}
    return [{key: shares[i] for key, shares in columns.items()} for i in range(count)]


def mean(parts: Sequence[dict[str, Any]], key: str) -> float:
    """Mean of a number over workers that did equally much."""
    return float(sum(part[key] for part in parts) / len(parts))
