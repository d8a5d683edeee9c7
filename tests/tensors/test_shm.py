"""Shared memory between real processes: mapped, never damaged, never reused under a reader."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from subprocess import PIPE
from typing import Any

import msgspec
import pytest
import torch

from rolecall.tensors.backends.segments import MIB, Pool, size_class
from rolecall.tensors.backends.shm import PACKED, SLAB, ShmBackend
from rolecall.tensors.backends.wire import WireBackend
from rolecall.tensors.shard import Shard
from rolecall.tensors.store import Store
from tests.tensors.open_files import open_descriptors


class Reader:
    """Another process, `shm_reader.py`."""

    def __init__(self) -> None:
        program = Path(__file__).with_name("shm_reader.py")
        self.process = subprocess.Popen([sys.executable, str(program)], stdin=PIPE, stdout=PIPE, text=True)

    def __call__(self, verb: str, shard: Shard | None = None) -> Any:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps([verb, shard and msgspec.to_builtins(shard)]) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture(scope="module")
def shared_reader() -> Iterator[Reader]:
    made = Reader()
    yield made
    made.kill()


def _ones(nbytes: int) -> torch.Tensor:
    return torch.ones(nbytes, dtype=torch.uint8)


@pytest.mark.slow("a process that imports torch")
@pytest.mark.parametrize("size", [PACKED // 2, PACKED, 8 * MIB])
def test_another_process_reads_and_its_changes_stay_its_own(store: Store, shared_reader: Reader, size: int) -> None:
    """A reader may change its tensor in place; the owner and later readers see the stored values."""
    shard = store.put(_ones(size))
    assert shard.backend == "shm"
    assert shared_reader("spoil", shard) == 0
    assert shared_reader("read", shard) == size
    assert store.get([shard.id])[0].sum() == size


def test_memory_is_reused_only_when_no_reader_holds_it(store: Store, shared_reader: Reader) -> None:
    """A mapped reader keeps its segment; when it lets go, the very same segment is filled again."""
    shard = store.put(_ones(4 * MIB))
    assert shared_reader("keep", shard) == 4 * MIB
    store.delete([shard.id])
    second = store.put(torch.zeros(4 * MIB, dtype=torch.uint8))
    assert second.where["inode"] != shard.where["inode"]
    assert shared_reader("sum kept") == 4 * MIB
    shared_reader("drop")
    third = store.put(_ones(4 * MIB))
    assert third.where["inode"] == shard.where["inode"]


@pytest.mark.slow("processes that import torch")
def test_a_readers_death_gives_its_memory_back(store: Store) -> None:
    """SIGKILL is enough: the lock dies with its holder."""
    killed = Reader()
    shard = store.put(_ones(4 * MIB))
    assert killed("keep", shard) == 4 * MIB
    store.delete([shard.id])
    killed.kill()
    assert store.put(_ones(4 * MIB)).where["inode"] == shard.where["inode"]


def test_a_freed_shard_is_not_read_even_from_memory_that_serves_another(store: Store, shared_reader: Reader) -> None:
    """A reader with an outdated description gets nothing instead of another tensor's bytes."""
    for size in (PACKED // 2, 4 * MIB):
        shard = store.put(_ones(size))
        store.delete([shard.id])
        assert shared_reader("read", shard) is None
        store.put(_ones(size))
        assert shared_reader("read", shard) is None


def test_a_reader_keeps_its_tensor_when_the_owner_is_gone(shared_reader: Reader) -> None:
    """Mapped memory outlives the store that made it, but nothing new is read from it."""
    owner = Store("actor/1", [], {"shm": ShmBackend()})
    shard = owner.put(_ones(4 * MIB))
    assert shared_reader("keep", shard) == 4 * MIB
    owner.close()
    assert shared_reader("sum kept") == 4 * MIB
    assert shared_reader("read", shard) is None
    shared_reader("drop")


@pytest.mark.parametrize(
    "wrong",
    [
        {"host": "another/pid:[1]"},
        {"pid": 1},
        {"pid": 2**30},
        {"pid": -1},
        {"fd": 0},
        {"fd": 10**6},
        {"fd": "../../1/root"},
        {"inode": 0},
        {"offset": 128},
        {"offset": 0},
        {"offset": -64},
        {"offset": 1 << 60},
        {"offset": True},
    ],
    ids=str,
)
def test_a_place_that_is_not_the_shards_gives_nothing(store: Store, wrong: dict[str, Any]) -> None:
    """A reused process id, a foreign descriptor or a made-up offset is noticed; the fetcher then asks the owner."""
    shard = store.put(_ones(4 * MIB))
    shard.where = {**shard.where, **wrong}
    assert ShmBackend().fetch([shard]) == [None]


def test_a_pipe_at_that_descriptor_is_left_alone(store: Store) -> None:
    """A reader that looks at a stranger's pipe neither blocks nor opens it."""
    shard = store.put(_ones(4 * MIB))
    ours, theirs = os.pipe()
    shard.where = {**shard.where, "fd": ours, "inode": os.fstat(ours).st_ino}
    assert ShmBackend().fetch([shard]) == [None]
    os.close(ours)
    os.close(theirs)


def test_descriptors_stay_bounded_with_thousands_of_shards() -> None:
    """Small shards share segments; beyond the limit of segments, shards lie in the owner's own memory."""
    shm = ShmBackend(limit=8)
    store = Store("actor/0", [], {"shm": shm, "wire": WireBackend()}, "shm")
    before = open_descriptors()
    shards = [store.put(_ones(100_000)) for _ in range(2000)]
    assert open_descriptors() - before <= 2 * 8
    assert {shard.backend for shard in shards} == {"shm", "wire"}
    assert all(t.sum() == 100_000 for t in store.get([shard.id for shard in shards]))
    store.close()
    assert open_descriptors() == before


def test_a_reader_with_many_tensors_copies_instead_of_keeping_ever_more_descriptors(store: Store) -> None:
    """Beyond its number of mappings a reader copies."""
    few = ShmBackend(mappings=3)
    shard = store.put(_ones(2 * MIB))
    tensors = [few.fetch([shard])[0] for _ in range(10)]
    assert few.metrics()["mapped"] == 3 and few.metrics()["copied"] == 7
    assert all(t is not None and t.sum() == 2 * MIB for t in tensors)


def test_an_owner_without_free_descriptors_still_reads_its_own(store: Store) -> None:
    """A store reads its shards without opening them by their description."""
    shard = store.put(_ones(2 * MIB))
    small = store.put(_ones(PACKED // 2))
    shard.where = small.where = {}
    assert [int(t.sum()) for t in store.fetch([shard, small])] == [2 * MIB, PACKED // 2]


def test_putting_and_freeing_forever_takes_no_more_memory_nor_descriptors(store: Store) -> None:
    """Freed memory is used again, so neither segments nor descriptors grow."""

    def step() -> None:
        ids = [store.put(_ones(size)).id for size in (10, 200_000, 200_000, 3 * MIB, 5 * MIB)]
        store.get(ids)
        store.delete(ids)

    for _ in range(100):  # more than fills a slab
        step()
    shm, descriptors = store.backends["shm"], open_descriptors()
    created = shm.metrics()["created"]
    for _ in range(200):
        step()
    assert shm.metrics()["created"] == created and open_descriptors() == descriptors


def test_idle_segments_stay_within_the_budget() -> None:
    """Segments beyond the budget are released, and giving one back twice counts once."""
    pool = Pool(budget=10 * MIB, limit=100)
    segments = [pool.acquire(4 * MIB) for _ in range(5)]
    for segment in segments:
        assert segment is not None
        pool.release(segment)
        pool.release(segment)
    assert pool.metrics()["idle_bytes"] == 8 * MIB and pool.metrics()["segments"] == 0
    pool.close()


def test_a_small_tensor_does_not_take_a_large_segment() -> None:
    """An idle segment is not used for a tensor far smaller than it."""
    pool = Pool(budget=100 * MIB, limit=100)
    large = pool.acquire(64 * MIB)
    assert large is not None
    pool.release(large)
    small = pool.acquire(2 * MIB)
    assert small is not None and small.capacity < 4 * MIB
    pool.close()


@pytest.mark.parametrize("n", [1, 4096, 4097, MIB, 3 * MIB + 1, 64 * MIB + 64, 10**10 + 7])
def test_a_segments_capacity_is_at_most_a_quarter_more_than_asked(n: int) -> None:
    """Size classes hold what is asked for and waste a quarter at most, or the rest of a page."""
    assert n <= size_class(n) <= max(n * 1.25 + 1, 4096 * -(-n // 4096))


def test_nothing_is_named_in_dev_shm(store: Store) -> None:
    """Segments are anonymous: no file appears in /dev/shm."""
    before = set(Path("/dev/shm").iterdir())
    store.put(_ones(SLAB))
    assert set(Path("/dev/shm").iterdir()) == before


def test_tensors_over_mapped_memory_raise_no_warning(store: Store, recwarn: pytest.WarningsRecorder) -> None:
    """Writing to a fetched tensor makes torch print nothing."""
    tensor = store.get([store.put(_ones(2 * MIB)).id])[0]
    tensor += 1
    assert not recwarn.list


def test_a_mapping_serves_the_next_shard_and_shows_nothing_of_its_last_reader(store: Store) -> None:
    """What a reader wrote into its tensor is gone when the same memory is mapped for another one."""
    reader = ShmBackend()
    first = store.put(_ones(4 * MIB))
    reader.fetch([first])[0].zero_()  # type: ignore[union-attr]
    store.delete([first.id])
    second = store.put(_ones(4 * MIB) * 2)
    assert second.where["inode"] == first.where["inode"]
    assert int(reader.fetch([second])[0].sum()) == 8 * MIB  # type: ignore[union-attr]
    assert reader.metrics()["remapped"] == 1
    reader.close()


def test_two_tensors_of_one_shard_keep_their_changes_apart(store: Store) -> None:
    """Each fetch gives memory of its own to write to."""
    shard = store.put(_ones(4 * MIB))
    one, other = store.get([shard.id]) + store.get([shard.id])
    one[:] = 0
    assert int(other.sum()) == 4 * MIB


def test_what_an_owner_gave_up_is_not_kept_mapped_for_long(store: Store) -> None:
    """An idle mapping goes at the latest when the reader maps something else."""
    reader, owner = ShmBackend(), Store("actor/1", [], {"shm": ShmBackend()})
    assert reader.fetch([owner.put(_ones(4 * MIB))])[0] is not None
    owner.close()
    assert reader.metrics()["idle_mappings"] == 1
    assert reader.fetch([store.put(_ones(2 * MIB))])[0] is not None
    assert reader.metrics()["idle_mappings"] == 1
    reader.close()


def test_a_tensor_that_a_forked_child_holds_too_is_not_overwritten(store: Store) -> None:
    """The parent's letting go does not free the memory under a data loader's process."""
    shard = store.put(_ones(4 * MIB))
    kept = store.get([shard.id])
    gate, opener = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(opener)
        os.read(gate, 1)
        os._exit(0 if kept else 1)
    os.close(gate)
    kept.clear()
    store.delete([shard.id])
    second = store.put(_ones(4 * MIB))
    assert second.where["inode"] != shard.where["inode"]
    os.close(opener)
    assert os.waitpid(child, 0)[1] == 0
    assert store.put(_ones(4 * MIB)).where["inode"] == shard.where["inode"]


def test_a_put_without_a_free_descriptor_goes_to_the_owners_own_memory(store: Store) -> None:
    """At the limit of open files a tensor is stored by the `wire` backend instead of failing."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))  # what is open stays open
    try:
        shard = store.put(_ones(4 * MIB))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert shard.backend == "wire" and store.get([shard.id])[0].sum() == 4 * MIB
