"""A store keeps a tensor's bytes until they are freed, whatever happens to the tensor."""

from __future__ import annotations

import threading

import pytest
import torch

from rolecall.errors import ShardNotFoundError, TensorError
from rolecall.protocol.worker_methods import Cleared
from rolecall.tensors.backends.shm import PACKED, SMALLEST
from rolecall.tensors.store import Store

SIZES = [0, 1, SMALLEST - 1, SMALLEST, PACKED - 1, PACKED, 3 * PACKED + 5]


@pytest.mark.parametrize("size", SIZES)
def test_what_is_put_comes_back(store: Store, size: int) -> None:
    """A stored tensor of any size is returned with the same elements, size and shape."""
    tensor = torch.randint(0, 256, (size,), dtype=torch.uint8)
    shard = store.put(tensor)
    assert torch.equal(store.get([shard.id])[0], tensor)
    assert shard.nbytes == size and shard.shape == (size,)


@pytest.mark.parametrize("size", SIZES[1:])
def test_a_later_change_of_the_tensor_does_not_reach_the_shard(store: Store, size: int) -> None:
    """A shard is a copy of the tensor as it was when it was put."""
    tensor = torch.zeros(size, dtype=torch.uint8)
    shard = store.put(tensor)
    tensor.fill_(1)
    assert store.get([shard.id])[0].sum() == 0


def test_strided_expanded_conjugated_and_differentiable_tensors_are_stored_by_value(store: Store) -> None:
    """Tensors of any layout come back as their values, detached."""
    odd = [
        torch.arange(600_000.0).view(600, 1000).t(),
        torch.ones(1, 500).expand(600, 500),
        torch.complex(torch.ones(9), torch.ones(9)).conj(),
        torch.ones(5, requires_grad=True) * 2,
        torch.nn.Parameter(torch.ones(2, 2)),
        torch.tensor(3.5),
    ]
    for tensor, got in zip(odd, store.get([store.put(t).id for t in odd]), strict=True):
        assert got.shape == tensor.shape and torch.equal(got, tensor.detach())


def test_ranges_give_only_their_elements(store: Store) -> None:
    """Each range of elements of a shard is returned by itself, an empty one too."""
    a, b = store.put(torch.arange(10)), store.put(torch.arange(1 << 20))
    parts = store.get([a.id, b.id, a.id], [(2, 4), (5, 5), (0, 1)])
    assert [part.tolist() for part in parts] == [[2, 3], [], [0]]


def test_a_range_outside_its_shard_is_refused(store: Store) -> None:
    """The error names the range."""
    shard = store.put(torch.arange(10))
    with pytest.raises(TensorError, match="8 to 11"):
        store.get([shard.id], [(8, 11)])


@pytest.mark.parametrize("tensor", [torch.ones(3).to_sparse(), torch.ones(3, device="meta")], ids=["sparse", "meta"])
def test_a_tensor_without_dense_data_is_refused(store: Store, tensor: torch.Tensor) -> None:
    """Sparse, nested and meta tensors cannot be stored."""
    with pytest.raises(TensorError, match="dense"):
        store.put(tensor)


def test_unknown_shards_are_all_named(store: Store) -> None:
    """The error lists every missing shard and its owner, not just the first."""
    known = store.put(torch.ones(1))
    with pytest.raises(ShardNotFoundError) as error:
        store.get(["a" * 32, known.id, "b" * 32])
    assert error.value.shard_ids == ["a" * 32, "b" * 32] and error.value.owner == "actor/0"


def test_deleting_counts_what_went_and_what_is_left(store: Store) -> None:
    """Deletion reports shards cleared, shards left and bytes left, and is idempotent."""
    shards = [store.put(torch.ones(100)) for _ in range(3)]
    assert store.delete([shards[0].id, "no such"]) == Cleared(cleared_count=1, num_tensors=2, total_bytes=800)
    assert store.delete([shards[0].id]) == Cleared(cleared_count=0, num_tensors=2, total_bytes=800)
    assert store.clear() == Cleared(cleared_count=2, num_tensors=0, total_bytes=0)
    with pytest.raises(ShardNotFoundError):
        store.get([shards[1].id])


def test_a_tensor_that_was_read_stays_whole_when_its_shard_is_freed_and_its_memory_wanted(store: Store) -> None:
    """Reading holds the segment: nothing is put into it before the last reader lets go."""
    for size in (PACKED // 4, PACKED):
        shard = store.put(torch.full((size,), 7, dtype=torch.float32))
        held = store.get([shard.id])[0]
        store.delete([shard.id])
        for _ in range(40):
            store.delete([store.put(torch.zeros(size)).id])
        assert (held == 7).all()


def test_many_threads_may_put_get_and_delete(store: Store) -> None:
    """Threads that use one store at the same time each read their own bytes, and nothing is left."""
    failures: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            for i in range(30):
                size = SIZES[(seed + i) % len(SIZES)] + 8
                shard = store.put(torch.full((size,), seed, dtype=torch.uint8))
                got = store.get([shard.id])[0]
                store.delete([shard.id])
                assert len(got) == size and (got == seed).all()
        except BaseException as e:
            failures.append(e)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert store.metrics()["shards"] == store.metrics()["bytes"] == 0


def test_closing_twice_does_no_harm(store: Store) -> None:
    """The second close of a store does nothing, and its shards are gone."""
    shard = store.put(torch.ones(PACKED))
    store.close()
    store.close()
    with pytest.raises(ShardNotFoundError):
        store.get([shard.id])
