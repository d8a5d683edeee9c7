"""Shards in shared memory: mapped, not copied, on the same host. On other hosts the fetcher asks the owner.

No file has a name: a shard holds `/proc/<pid>/fd/<n>` and the inode, and its id is written in front of its elements, so
that a reused pid, descriptor or segment is detected.

Readers map privately (copy on write) through a descriptor that was opened for reading: a reader may change its tensor
in place, and cannot change the owner's bytes. Shards under 1 MiB share segments and are copied out, because a mapping
would keep the whole segment from reuse and cost a descriptor.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rolecall.tensors.backends import segments
from rolecall.tensors.backends.mappings import MappedSegment, Mappings
from rolecall.tensors.backends.segments import HEADER, MIB, Pool, Segment
from rolecall.tensors.dtypes import Dense, copied, fill, over
from rolecall.tensors.shard import Shard, Where
from rolecall.transport.address import this_host

SMALLEST = 64 << 10  # below, a round trip costs less than opening and mapping
PACKED = MIB  # below, shards share segments
SLAB = 16 * MIB


@dataclass
class _Slab:
    """A segment and its shards: one large one, or many small ones."""

    segment: Segment
    used: int = 0
    shards: set[str] = field(default_factory=set)


class ShmBackend:
    """The backend `shm`.

    Args:
        budget: Bytes of segments to keep for reuse, default a 32nd of the memory, at most 4 GiB.
        limit: Number of segments; when it is reached, `put` returns None.
        mappings: Number of tensors that this process may have mapped at a time; further ones are copied.
    """

    name = "shm"
    private = True
    waits = False

    def __init__(self, budget: int | None = None, limit: int | None = None, mappings: int | None = None) -> None:
        limit = segments.default_limit() if limit is None else limit
        budget = segments.default_budget() if budget is None else budget
        self._pool = Pool(budget, limit)
        self._mappings = Mappings(budget // 2)
        self._limit = limit if mappings is None else mappings
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._places: dict[str, tuple[_Slab, int]] = {}  # of own shards, with the offset of their elements
        self._slab: _Slab | None = None  # the one that small shards are put into
        self._counts = {"mapped": 0, "copied": 0, "unreachable": 0}

    def put(self, shard_id: str, tensor: Dense, dtype: str) -> Where | None:
        if tensor.nbytes < SMALLEST:
            return None
        with self._lock:
            place = self._place(shard_id, tensor.nbytes)
        if place is None:
            return None
        segment, offset = place[0].segment, place[1]
        try:
            fill(over(segment.memory, dtype, tuple(tensor.shape), offset), tensor)
        except BaseException:
            with self._lock:
                self._free(shard_id)
            raise
        segment.mark(offset, shard_id)
        where = {"pid": self._pid, "fd": segment.fd, "inode": segment.inode, "offset": offset}
        return {"host": this_host(), **where}

    def _place(self, shard_id: str, nbytes: int) -> tuple[_Slab, int] | None:
        packed = nbytes < PACKED
        room = HEADER + -(-nbytes // HEADER) * HEADER
        slab = self._slab if packed else None
        if slab is None or slab.used + room > slab.segment.capacity:
            segment = self._pool.acquire(SLAB if packed else HEADER + nbytes)
            if segment is None:
                return None
            if slab is not None and not slab.shards:
                self._pool.release(slab.segment)
            slab = _Slab(segment)
            if packed:
                self._slab = slab
        place = self._places[shard_id] = slab, slab.used + HEADER
        slab.used += room
        slab.shards.add(shard_id)
        return place

    def delete(self, shards: Sequence[Shard]) -> None:
        with self._lock:
            for shard in shards:
                self._free(shard.id)

    def _free(self, shard_id: str) -> None:
        slab, offset = self._places.pop(shard_id, (None, 0))
        if slab is not None:
            slab.segment.wipe(offset)
            slab.shards.discard(shard_id)
            if not slab.shards and slab is not self._slab:
                self._pool.release(slab.segment)

    def fetch(self, shards: Sequence[Shard]) -> list[Dense | None]:
        """Maps large shards and copies packed ones; None for a shard of another host or one that cannot be opened."""
        found: dict[str, Dense | None] = {}
        opened: dict[tuple[Any, Any], MappedSegment | None] = {}  # each segment once for all its shards
        for shard in shards:
            at = (shard.where.get("pid"), shard.where.get("inode"))
            if at not in opened:
                opened[at] = self._mappings.map(shard.where)
            if shard.id not in found:
                found[shard.id] = self._read(opened[at], shard)
        for mapped in opened.values():
            if mapped is not None and not mapped.viewed:
                mapped.close()
        return [self._copy_own(shard) if found[shard.id] is None else found[shard.id] for shard in shards]

    def _read(self, mapped: MappedSegment | None, shard: Shard) -> Dense | None:
        offset = None if mapped is None else _offset(mapped, shard)
        if mapped is None or offset is None:
            self._counts["unreachable"] += 1
            return None
        if shard.nbytes >= PACKED and len(self._mappings) <= self._limit:
            self._counts["mapped"] += 1
            return over(mapped.view(), shard.dtype, (shard.numel,), offset)
        self._counts["copied"] += 1
        return copied(shard.dtype, over(mapped.span.view(), shard.dtype, (shard.numel,), offset))

    def _copy_own(self, shard: Shard) -> Dense | None:
        """A copy of an own shard that cannot be mapped: no descriptor is left, or `/proc` is hidden."""
        with self._lock:  # so that it is not freed meanwhile
            slab, offset = self._places.get(shard.id, (None, 0))
            return copied(shard.dtype, over(slab.segment.memory, shard.dtype, (shard.numel,), offset)) if slab else None

    def metrics(self) -> dict[str, Any]:
        own = {"shards": len(self._places), **self._counts}
        return {**own, **self._mappings.metrics(), **self._pool.metrics()}

    def close(self) -> None:
        with self._lock:
            for slab, offset in self._places.values():
                slab.segment.wipe(offset)
            self._places.clear()
            self._slab = None
            self._pool.close()
        self._mappings.close()


def _offset(mapped: MappedSegment, shard: Shard) -> int | None:
    """Offset of the shard's elements; None when the shard is no longer there."""
    offset = shard.where.get("offset")
    if not isinstance(offset, int) or offset < HEADER or offset % HEADER or offset + shard.nbytes > mapped.span.size:
        return None
    marked = mapped.span.view()[offset - HEADER : offset - HEADER + 16] == bytes.fromhex(shard.id)
    return offset if marked else None
