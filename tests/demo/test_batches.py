"""Batches of handles, joined and divided without a worker."""

from __future__ import annotations

import pytest

from rolecall import RTensor
from rolecall.demo.loop import concatenate, mean, split
from rolecall.tensors.shard import Shard


def handle(owner: str, name: str, rows: int) -> RTensor:
    return RTensor.of(Shard(32 * name, f"rollout/{owner}", (), "wire", {}, "float32", (rows, 4)))


def test_parts_are_joined_and_divided_without_moving_a_byte() -> None:
    """Two workers' trajectories over three actors: all rows, in order, still on the workers that made them."""
    batch = concatenate(
        [{"tokens": handle("0", "a", 6), "reward": 0.5}, {"tokens": handle("1", "b", 6), "reward": 0.7}]
    )
    assert list(batch) == ["tokens"]
    shares = split(batch, 3)
    assert [len(share["tokens"]) for share in shares] == [4, 4, 4]
    owners = [[shard.owner for shard in share["tokens"].shards] for share in shares]
    assert owners == [["rollout/0"], ["rollout/0", "rollout/1"], ["rollout/1"]]


def test_numbers_are_averaged_over_the_workers() -> None:
    """Every worker did equally much."""
    assert mean([{"reward": 0.5}, {"reward": 0.7}], "reward") == pytest.approx(0.6)
