"""A worker's tensors: it answers `data.*` for others and keeps the handles that the worker was lent."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from rolecall.errors import ProtocolError, RolecallError
from rolecall.tensors import tree
from rolecall.tensors.dtypes import dtype_name, storable
from rolecall.tensors.fetch import Fetcher
from rolecall.tensors.handle import RTensor
from rolecall.tensors.owners import Connect
from rolecall.tensors.padding import trimmed
from rolecall.tensors.shard import Shard
from rolecall.tensors.store import Store


class DataService:
    """What a worker does with shards: its own, which it stores and serves, and others', which it fetches.

    Args:
        connect: Gives the connection to another owner; needed only for clearing its shards.
    """

    def __init__(self, store: Store, fetcher: Fetcher, connect: Connect | None = None) -> None:
        self.store, self.fetcher, self._connect = store, fetcher, connect
        self._methods: dict[str, Callable[[Any], Any]] = {
            "data.get": self.get,
            "data.put": self.put,
            "data.clear": self.clear,
            "data.info": self.info,
        }

    def answer(self, method: str, value: Any) -> Any:
        """The answer to a `data.*` request. May copy memory: call it on a thread that may take its time.

        Raises:
            ProtocolError: No such method, or its value is malformed.
            ShardNotFoundError: An id is unknown.
        """
        if method not in self._methods:
            raise ProtocolError("no such data method", method)
        return self._methods[method](value)

    def get(self, value: dict[str, Any]) -> list[Any]:
        """`{ids, ranges?}` -> the tensors, or the flat ranges of elements."""
        ids, ranges = _ids(value), value.get("ranges")
        if ranges is not None and (len(ranges) != len(ids) or not all(_is_range(r) for r in ranges)):
            raise ProtocolError("data.get needs a range (start, stop) for each id", len(ids))
        return self.store.get(ids, ranges)

    def put(self, value: Any) -> Any:
        """Any nested value -> the same with handles of tensors that lie here."""
        return self.remotize(value)

    def clear(self, value: dict[str, Any]) -> dict[str, int]:
        """`{ids}` -> `cleared_count`, `num_tensors`, `total_bytes`; unknown ids are passed over."""
        ids = _ids(value)
        self.fetcher.cache.discard((value.get("owner", self.store.owner), i) for i in ids)
        return self.store.delete(ids)

    def info(self, value: dict[str, Any] | None = None) -> list[dict[str, Any]]:
        """`{ids}` or nothing -> dtype, shape, size and backend of each."""
        return self.store.info(_ids(value) if value else None)

    def remotize(self, value: Any) -> Any:
        """`value` with its tensors stored here and handles in their place, batches without their padding.

        A tensor that stands in several places is stored once.
        """
        handles: dict[int, tuple[Any, RTensor]] = {}  # the tensor is held too, else its identity could be reused

        def leave(leaf: Any) -> Any:
            if id(leaf) in handles:
                return handles[id(leaf)][1]
            if not is_tensor(leaf) or not storable(leaf):
                return leaf
            handle = self._leave(leaf)
            handles[id(leaf)] = (leaf, handle)
            return handle

        try:
            return tree.map_leaves(leave, value, enter=trimmed)
        except BaseException:
            self.store.delete(shard.id for _, handle in handles.values() for shard in handle.shards)
            raise

    def _leave(self, tensor: Any) -> RTensor:
        if not tensor.numel():  # nothing to store, and no piece would keep and free the shard
            return RTensor(dtype_name(tensor.dtype), tensor.shape, [])
        return RTensor.of(self.store.put(tensor))

    def free(self, shards: Sequence[Shard]) -> None:
        """Frees shards on explicit request: own ones now, others by asking their owners, without waiting."""
        self.fetcher.cache.discard(shard.key for shard in shards)
        self.store.delete(shard.id for shard in shards if shard.owner == self.store.owner)
        others: dict[tuple[str, tuple[str, ...]], list[str]] = {}
        for shard in shards:
            shard.freed = True
            if shard.owner != self.store.owner:
                others.setdefault((shard.owner, shard.addresses), []).append(shard.id)
        for (owner, addresses), ids in others.items():
            if self._connect is not None:
                with suppress(RolecallError):  # a dead owner's shards are gone already
                    self._connect(owner, addresses).request("data.clear", {"ids": ids})

    def metrics(self) -> dict[str, Any]:
        return {"store": self.store.metrics(), "fetch": self.fetcher.metrics()}


def is_tensor(value: Any) -> bool:
    """True for a torch tensor, without importing torch for anything else."""
    return any(kind.__name__ == "Tensor" and kind.__module__ == "torch" for kind in type(value).__mro__)


def _ids(value: Any) -> list[str]:
    ids = value.get("ids") if isinstance(value, dict) else None
    if not isinstance(ids, list) or not all(isinstance(i, str) for i in ids):
        raise ProtocolError("a data request needs a list of ids")
    return ids


def _is_range(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) == 2 and all(type(n) is int for n in value)
