"""Shards in the owner's memory, read through its connection. Works between any two hosts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rolecall.tensors.dtypes import Dense, copied
from rolecall.tensors.shard import Shard, Where


class WireBackend:
    """Keeps tensors in a dict. In other processes `fetch` finds nothing, and the fetcher requests `data.get`."""

    name = "wire"
    private = False
    waits = False

    def __init__(self) -> None:
        self._tensors: dict[str, Dense] = {}  # single dict operations only: atomic under the interpreter's lock

    def put(self, shard_id: str, tensor: Dense, dtype: str) -> Where | None:
        self._tensors[shard_id] = copied(dtype, tensor).reshape(-1)
        return {}

    def fetch(self, shards: Sequence[Shard]) -> list[Dense | None]:
        return [self._tensors.get(shard.id) for shard in shards]

    def delete(self, shards: Sequence[Shard]) -> None:
        for shard in shards:
            self._tensors.pop(shard.id, None)

    def metrics(self) -> dict[str, Any]:
        tensors = list(self._tensors.values())
        return {"shards": len(tensors), "bytes": sum(t.nbytes for t in tensors)}

    def close(self) -> None:
        self._tensors.clear()
