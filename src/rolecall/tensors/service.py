"""A worker's tensors: answers `data.*` requests, stores results, fetches and frees for the worker's engines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from operator import attrgetter
from typing import Any

from rolecall.errors import ProtocolError, RolecallError, ShardExistsError
from rolecall.protocol import worker_methods as protocol
from rolecall.tensors import tree
from rolecall.tensors.dtypes import Dense, dtype_name, from_bytes, is_array, is_tensor
from rolecall.tensors.fetch import Fetcher
from rolecall.tensors.handle import RTensor
from rolecall.tensors.shard import Shard, grouped
from rolecall.tensors.store import Store

MASK = "attention_mask"


def trimmed(value: Any) -> Any:
    """`value`, when it is a dict with a `[batch, seq]` attention mask, without trailing padding.

    Every tensor or array whose first two axes equal the mask's loses the last columns that are masked out in all rows.
    Other values are returned unchanged, and so is a batch whose mask is all zeros, which does not tell what is padding.
    """
    mask: Any = value.get(MASK) if isinstance(value, dict) else None
    if not _dense(mask) or mask.ndim != 2:
        return value
    used: list[bool] = (mask != 0).any(0).tolist()
    width = len(used) - used[::-1].index(True) if any(used) else mask.shape[1]
    if width == mask.shape[1]:
        return value
    grid = tuple(mask.shape)
    out = value.copy()
    for key, item in value.items():
        if _dense(item) and tuple(item.shape[:2]) == grid:
            out[key] = item[:, :width]
    return out


def _dense(value: Any) -> bool:
    return is_tensor(value) or is_array(value)


class DataService:
    """Stores and serves the worker's own shards, and fetches those of other workers."""

    def __init__(self, store: Store, fetcher: Fetcher) -> None:
        self.store, self.fetcher = store, fetcher
        self._methods: dict[str, Callable[[Any], Any]] = {
            protocol.GET_SHARDS.name: self.get,
            protocol.PUT_VALUE.name: self.remotize,
            "data.store": self.store_shard,
            protocol.CLEAR_SHARDS.name: self.clear,
        }

    def answer(self, method: str, value: Any) -> Any:
        """Answers a `data.*` request. It may copy memory, so it must not run on an event loop.

        Raises:
            ProtocolError: No such method, or its value is malformed.
            ShardNotFoundError: An id is unknown.
        """
        if method not in self._methods:
            raise ProtocolError("no such data method", method)
        return self._methods[method](protocol.METHODS[method].parsed(value))

    def get(self, params: protocol.GetShards) -> list[Dense]:
        """The tensors, or the flat ranges of elements."""
        if params.ranges is not None and len(params.ranges) != len(params.shard_ids):
            raise protocol.GET_SHARDS.malformed(f"{len(params.ranges)} ranges for {len(params.shard_ids)} ids")
        return self.store.get(params.shard_ids, params.ranges)

    def store_shard(self, params: protocol.StoreShard) -> protocol.Stored:
        """Stores a tensor under the caller's id."""
        if params.shard_id in self.store:
            raise ShardExistsError(params.shard_id, self.store.owner)
        tensor = from_bytes(params.data, params.dtype, params.shape)
        shard = self.store.put(tensor, params.shard_id)
        return protocol.Stored(shard_id=shard.id, nbytes=shard.nbytes)

    def clear(self, params: protocol.ClearShards) -> protocol.Cleared:
        """Frees own shards, and drops the owner's from the cache; unknown ids are ignored."""
        owner = params.owner or self.store.owner
        self.fetcher.cache.discard((owner, i) for i in params.shard_ids)
        return self.store.delete(params.shard_ids)

    def remotize(self, value: Any) -> Any:
        """Stores the tensors and arrays in `value`; returns it with handles in their place, batches without padding.

        One that occurs several times is stored once.
        """
        handles: dict[int, tuple[Any, RTensor]] = {}  # with the tensor, whose id could be reused otherwise

        def stored(leaf: Any) -> Any:
            if id(leaf) in handles:
                return handles[id(leaf)][1]
            if not (dtype := dtype_name(leaf)):
                return leaf
            # of no elements: no piece would reference the shard and free it
            handle = RTensor.of(self.store.put(leaf)) if leaf.nbytes else RTensor(dtype, leaf.shape, [])
            handles[id(leaf)] = (leaf, handle)
            return handle

        try:
            return tree.map_leaves(stored, value, enter=trimmed)
        except BaseException:
            self.store.delete(shard.id for _, handle in handles.values() for shard in handle.shards)
            raise

    def free(self, shards: Sequence[Shard]) -> None:
        """Frees shards: own ones at once, others by requests to their owners, without waiting."""
        self.fetcher.cache.discard(shard.key for shard in shards)
        for shard in shards:
            shard.freed = True
        for (owner, addresses), group in grouped(shards, attrgetter("owner", "addresses")).items():
            ids = [shard.id for shard in group]
            if owner == self.store.owner:
                self.store.delete(ids)
            else:
                with suppress(RolecallError):  # a dead owner's shards are gone already
                    cleared = protocol.ClearShards(shard_ids=ids)
                    self.fetcher.connect(owner, addresses).request(protocol.CLEAR_SHARDS.name, cleared)

    def metrics(self) -> dict[str, Any]:
        return {"store": self.store.metrics(), "fetch": self.fetcher.metrics()}
