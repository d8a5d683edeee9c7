"""Where the bytes of shards lie: the protocol, and nothing about any one place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from rolecall.tensors.shard import Shard, Where

if TYPE_CHECKING:
    import torch


class Backend(Protocol):
    """One place for bytes. Methods may be called from any thread.

    Attributes:
        name: What a shard says of itself to be served by this backend.
        private: True when fetched tensors are the caller's own, whose changes the shard never sees. False: they are the
            stored ones, to be read only.
        waits: True when `fetch` may wait for other processes; it is then not called on an event loop.
    """

    name: str
    private: bool
    waits: bool

    def put(self, shard_id: str, tensor: torch.Tensor) -> Where | None:
        """Stores a copy of a dense tensor and says where; None when this backend does not take it."""
        ...

    def fetch(self, shards: Sequence[Shard]) -> list[torch.Tensor | None]:
        """The elements of each shard as a flat tensor; None for one that only its owner can read."""
        ...

    def delete(self, shards: Sequence[Shard]) -> None:
        """Frees what `put` stored. Only the owner calls it."""
        ...

    def metrics(self) -> dict[str, Any]: ...

    def close(self) -> None:
        """Frees everything; tensors that were fetched stay whole."""
        ...
