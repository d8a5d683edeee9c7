"""The shards that a worker owns. It stores and frees; it never fetches from other processes."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterable, Mapping, Sequence
from operator import attrgetter
from typing import Any

from rolecall.errors import ShardNotFoundError, TensorError
from rolecall.protocol.worker_methods import Cleared
from rolecall.tensors.backends import Backend
from rolecall.tensors.dtypes import Dense, dtype_name
from rolecall.tensors.shard import Shard, grouped

Range = tuple[int, int]


class Store:
    """Shards by id, in one of several backends.

    Args:
        owner: Id of this worker.
        addresses: Where this worker listens, written into every shard.
        backends: By name.
        default: Name of the backend to try first; the others follow in order.
    """

    def __init__(
        self, owner: str, addresses: Sequence[str], backends: Mapping[str, Backend], default: str | None = None
    ) -> None:
        self.owner, self.addresses, self.backends = owner, tuple(addresses), dict(backends)
        self.prefer(default or next(iter(backends)))
        self._lock = threading.Lock()
        self._shards: dict[str, Shard] = {}
        self._bytes = 0
        self._counts = {"put": 0, "put_bytes": 0, "freed": 0, "freed_bytes": 0, "served": 0, "served_bytes": 0}

    def prefer(self, name: str) -> None:
        """Makes `put` try the backend of that name first. Stored shards are not moved."""
        first = self.backends[name]
        self._order = [first, *(backend for backend in self.backends.values() if backend is not first)]

    def put(self, tensor: Dense, shard_id: str | None = None) -> Shard:
        """Stores a copy of a dense tensor, from any device, or of an array.

        Args:
            shard_id: 32 hexadecimal digits, unique; None for a random one.

        Raises:
            TensorError: It is sparse, meta or quantized, or has objects or fields, or no backend could store it.
        """
        name = dtype_name(tensor)
        if not name:
            kind = f"a {type(tensor).__name__} of {tensor.dtype}"
            raise TensorError(
                f"only dense tensors with data, and arrays without objects and fields, are stored: not {kind}"
            )
        shard_id = shard_id or uuid.uuid4().hex
        for backend in self._order:
            where = backend.put(shard_id, tensor, name)
            if where is not None:
                break
        else:
            raise TensorError(f"no backend of {self.owner} could store a tensor of {tensor.nbytes} bytes")
        shard = Shard(shard_id, self.owner, self.addresses, backend.name, where, name, tuple(tensor.shape))
        with self._lock:
            self._shards[shard_id] = shard
            self._bytes += shard.nbytes
            self._counts["put"] += 1
            self._counts["put_bytes"] += shard.nbytes
        return shard

    def get(self, ids: Sequence[str], ranges: Sequence[Range] | None = None) -> list[Dense]:
        """The stored tensors; the caller must not change them.

        Args:
            ranges: For each id the elements `(start, stop)` to return; the tensors are flat then.

        Raises:
            ShardNotFoundError: Names all ids that are not stored here.
            TensorError: A range lies outside its shard.
        """
        shards = self.find(ids)
        out = self.fetch(shards)
        if ranges is None:
            out = [tensor.reshape(shard.shape) for tensor, shard in zip(out, shards, strict=True)]
        else:
            for at, (shard, (start, stop)) in enumerate(zip(shards, ranges, strict=True)):
                if not 0 <= start <= stop <= shard.numel:
                    raise TensorError(f"elements {start} to {stop} of a shard of {shard.numel}")
                if (start, stop) != (0, shard.numel):
                    out[at] = out[at][start:stop]
        with self._lock:
            self._counts["served"] += len(out)
            self._counts["served_bytes"] += sum(tensor.nbytes for tensor in out)
        return out

    def __contains__(self, shard_id: str) -> bool:
        return shard_id in self._shards

    def find(self, ids: Iterable[str]) -> list[Shard]:
        """The shards of these ids.

        Raises:
            ShardNotFoundError: Names all ids that are not stored here.
        """
        ids = list(ids)
        with self._lock:
            missing = [i for i in dict.fromkeys(ids) if i not in self._shards]
            if missing:
                raise ShardNotFoundError(missing, self.owner)
            return [self._shards[i] for i in ids]

    def fetch(self, shards: Sequence[Shard]) -> list[Dense]:
        """The elements of own shards as flat tensors, not to be changed unless the backend is private."""
        found: dict[Shard, Dense | None] = {}
        for name, mine in grouped(shards, attrgetter("backend")).items():
            found.update(zip(mine, self.backends[name].fetch(mine), strict=True))
        tensors = [tensor for shard in shards if (tensor := found[shard]) is not None]
        if len(tensors) < len(shards):
            raise ShardNotFoundError([shard.id for shard in shards if found[shard] is None], self.owner)
        return tensors

    def delete(self, ids: Iterable[str]) -> Cleared:
        """Frees shards; unknown ids are ignored."""
        with self._lock:
            gone = [shard for i in ids if (shard := self._shards.pop(i, None)) is not None]
            freed = sum(shard.nbytes for shard in gone)
            self._bytes -= freed
            self._counts["freed"] += len(gone)
            self._counts["freed_bytes"] += freed
            cleared = Cleared(cleared_count=len(gone), num_tensors=len(self._shards), total_bytes=self._bytes)
        for backend in self._order:
            backend.delete([shard for shard in gone if shard.backend == backend.name])
        return cleared

    def clear(self) -> Cleared:
        """Frees every shard."""
        return self.delete(list(self._shards))

    def metrics(self) -> dict[str, Any]:
        with self._lock:
            out: dict[str, Any] = {"shards": len(self._shards), "bytes": self._bytes, **self._counts}
        return {**out, "backends": {backend.name: backend.metrics() for backend in self._order}}

    def close(self) -> None:
        """Frees everything. May be called twice."""
        self.clear()
        for backend in self._order:
            backend.close()
