"""An LRU cache of ranges of shards that were fetched over a connection, with a byte budget."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from rolecall.tensors.dtypes import Dense

Key = tuple[str, str]  # owner and id of a shard
LARGE = 1 << 20  # copying more bytes takes longer than a small fetch
REMEMBERED = 4096  # keys of large blocks that were fetched once


class Block(NamedTuple):
    """Elements `start` to `stop` of a shard.

    Attributes:
        private: Nothing else reads this memory, so that it may be returned without a copy.
    """

    start: int
    stop: int
    tensor: Dense
    private: bool

    def covers(self, start: int, stop: int) -> bool:
        return self.start <= start and stop <= self.stop

    def part(self, start: int, stop: int) -> Dense:
        """Its memory from `start` to `stop` of the shard."""
        whole = start == self.start and stop == self.stop
        return self.tensor if whole else self.tensor[start - self.start : stop - self.start]


class Cache:
    """Evicts least recently used shards. Large blocks are cached from their second fetch on, since most are read once
    and every hit is a copy. Mapped shards are not cached: mapping again is cheap, and their owner could not reuse the
    memory.

    Args:
        budget: Bytes to keep; 0 keeps nothing.
    """

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self._lock = threading.Lock()
        self._blocks: OrderedDict[Key, list[Block]] = OrderedDict()
        self._once: OrderedDict[tuple[Key, int, int], None] = OrderedDict()
        self._bytes = 0
        self._counts = {"hits": 0, "misses": 0, "evicted": 0, "evicted_bytes": 0}

    def get(self, wanted: Sequence[tuple[Key, int, int]]) -> list[Block | None]:
        """For each shard and range of elements a cached block that covers it."""
        with self._lock:
            found: list[Block | None] = [None] * len(wanted)
            if self._blocks:
                found = [self._covering(*each) for each in wanted]
            missed = found.count(None)
            self._counts["misses"] += missed
            self._counts["hits"] += len(found) - missed
            return found

    def _covering(self, key: Key, start: int, stop: int) -> Block | None:
        for block in self._blocks.get(key, ()):
            if block.covers(start, stop):
                self._blocks.move_to_end(key)
                return block
        return None

    def put(self, key: Key, block: Block) -> bool:
        """Caches a block if the policy says so. When it returns True, the memory belongs to the cache."""
        size = block.tensor.nbytes
        if size > self.budget:
            return False
        with self._lock:
            if size >= LARGE and not self._fetched_before((key, block.start, block.stop)):
                return False
            kept = self._blocks.setdefault(key, [])
            inside = [old for old in kept if block.covers(old.start, old.stop)]
            kept[:] = [old for old in kept if not block.covers(old.start, old.stop)]
            kept.append(block._replace(private=False))
            self._blocks.move_to_end(key)
            self._bytes += size - sum(old.tensor.nbytes for old in inside)
            while self._bytes > self.budget:
                self._evict(next(iter(self._blocks)))
        return True

    def _fetched_before(self, key: tuple[Key, int, int]) -> bool:
        if key in self._once:
            return True
        self._once[key] = None
        if len(self._once) > REMEMBERED:
            self._once.popitem(last=False)
        return False

    def discard(self, keys: Iterable[Key]) -> None:
        """Drops these shards."""
        with self._lock:
            for key in keys:
                if key in self._blocks:
                    self._evict(key)

    def _evict(self, key: Key) -> None:
        gone = self._blocks.pop(key)
        size = sum(block.tensor.nbytes for block in gone)
        self._bytes -= size
        self._counts["evicted"] += 1
        self._counts["evicted_bytes"] += size

    def metrics(self) -> dict[str, Any]:
        with self._lock:
            return {"shards": len(self._blocks), "bytes": self._bytes, "budget": self.budget, **self._counts}
