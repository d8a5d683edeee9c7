"""The cache keeps what was fetched within its budget and hands out what covers the question."""

from __future__ import annotations

import pytest
import torch

from rolecall.tensors import fetch as cache_module
from rolecall.tensors.fetch import LARGE, Block, Cache

KEY, OTHER, THIRD = ("a", "1"), ("a", "2"), ("b", "1")


def _block(start: int, stop: int) -> Block:
    return Block(start, stop, torch.arange(start, stop, dtype=torch.uint8), private=True)


def _get(cache: Cache, key: tuple[str, str], start: int, stop: int) -> Block | None:
    return cache.get([(key, start, stop)])[0]


def test_a_block_serves_every_range_inside_it() -> None:
    """A cached block answers each range within its own, counts hits and misses, and no other shard's."""
    cache = Cache(100)
    assert cache.put(KEY, _block(10, 20))
    for start, stop in ((10, 20), (12, 13)):
        block = _get(cache, KEY, start, stop)
        assert block is not None and block.start == 10 and not block.private
    assert _get(cache, KEY, 9, 12) is None and _get(cache, OTHER, 10, 20) is None
    assert cache.metrics()["hits"] == 2 and cache.metrics()["misses"] == 2


def test_the_least_recently_used_shard_goes_first() -> None:
    """A full cache evicts the shard that was used longest ago."""
    cache = Cache(30)
    for key in (KEY, OTHER, THIRD):
        cache.put(key, _block(0, 10))
    _get(cache, KEY, 0, 1)
    cache.put(("c", "1"), _block(0, 5))
    assert _get(cache, KEY, 0, 1) and _get(cache, THIRD, 0, 1) and _get(cache, OTHER, 0, 1) is None
    assert cache.metrics()["bytes"] == 25 and cache.metrics()["evicted_bytes"] == 10


def test_what_is_larger_than_the_budget_is_not_kept() -> None:
    """A block larger than the whole cache is not stored."""
    cache = Cache(5)
    assert not cache.put(KEY, _block(0, 6))
    assert cache.metrics()["bytes"] == 0


def test_a_larger_block_replaces_those_inside_it() -> None:
    """A block that covers others of its shard replaces them, and discarding a shard frees all of its bytes."""
    cache = Cache(100)
    for start, stop in ((0, 10), (20, 30), (5, 40)):
        cache.put(KEY, _block(start, stop))
    assert cache.metrics()["bytes"] == 10 + 35
    cache.discard([KEY, OTHER])
    assert cache.metrics()["bytes"] == cache.metrics()["shards"] == 0


def test_a_large_block_is_kept_when_it_is_fetched_again() -> None:
    """Most are read once: keeping those would cost a copy of each, and memory."""
    cache = Cache(4 * LARGE)
    large = Block(0, LARGE, torch.zeros(LARGE, dtype=torch.uint8), private=True)
    assert not cache.put(KEY, large)
    assert not cache.put(OTHER, large)
    assert _get(cache, KEY, 0, 1) is None
    assert cache.put(KEY, large)
    assert _get(cache, KEY, 0, 1) is not None
    assert cache.metrics()["bytes"] == LARGE


def test_what_was_fetched_once_is_forgotten_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A large block is kept at its second fetch only, if the first was not too long ago."""
    monkeypatch.setattr(cache_module, "REMEMBERED", 2)
    monkeypatch.setattr(cache_module, "LARGE", 10)
    cache = Cache(100)
    for key in (KEY, OTHER, THIRD):
        assert not cache.put(key, _block(0, 10))
    assert not cache.put(KEY, _block(0, 10))
    assert cache.put(THIRD, _block(0, 10))
