"""Where the bytes of shards lie."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from rolecall.tensors.dtypes import Dense
from rolecall.tensors.shard import Shard, Where


class Backend(Protocol):
    """Stores the bytes of shards. Methods may be called from any thread.

    Attributes:
        name: The value of `Shard.backend`.
        private: True when fetched tensors are the caller's own; False when they are the stored ones, which the caller
            must not change.
        waits: True when `fetch` may wait for other processes, so that it must not run on an event loop.
    """

    name: str
    private: bool
    waits: bool

    def put(self, shard_id: str, tensor: Dense, dtype: str) -> Where | None:
        """Stores a copy of a tensor or array of that dtype; returns its place, or None when another must store it."""
        ...

    def fetch(self, shards: Sequence[Shard]) -> list[Dense | None]:
        """The elements of each shard as a flat tensor or array; None for one that only its owner can read."""
        ...

    def delete(self, shards: Sequence[Shard]) -> None:
        """Frees what `put` stored. Only the owner calls it."""
        ...

    def metrics(self) -> dict[str, Any]: ...

    def close(self) -> None:
        """Frees everything; fetched tensors stay valid."""
        ...
