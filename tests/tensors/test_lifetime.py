"""A home frees from wherever the last handle goes, and never in the way of the one who let it go."""

from __future__ import annotations

import gc
import threading
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from rolecall.errors import RPCConnectionError, ShardNotFoundError, TensorError
from rolecall.tensors import functions
from rolecall.tensors.fetch import Cache, Fetcher
from rolecall.tensors.handle import RTensor, pack_handles, read_handles
from rolecall.tensors.lifetime import Home
from rolecall.tensors.shard import Shard


class Owner:
    """Stands in for a worker's connection: notes what it is asked to free, and answers when told."""

    def __init__(self) -> None:
        self.cleared: list[str] = []
        self.requests = 0
        self.may_answer = threading.Event()
        self.may_answer.set()

    def request(self, method: str, value: Any = None, *, timeout: float | None = None) -> Any:
        assert method == "data.clear"
        self.requests += 1
        self.cleared += value.shard_ids
        return self

    @property
    def done(self) -> bool:
        return self.may_answer.is_set()

    def result(self) -> None:
        self.may_answer.wait()


class World:
    def __init__(self) -> None:
        self.owners = {"a": Owner(), "b": Owner()}
        self.home = Home(Fetcher(self.connect, Cache(0), {}))

    def connect(self, owner: str, addresses: tuple[str, ...]) -> Owner:
        if owner not in self.owners:
            raise RPCConnectionError(owner, "dead")
        return self.owners[owner]

    def handle(self, owner: str = "a", shard_id: str | None = None) -> RTensor:
        shard = Shard(shard_id or uuid.uuid4().hex, owner, (), "wire", {}, "int8", (4,))
        return read_handles(pack_handles([RTensor.of(shard)]), self.home)[0]


@pytest.fixture
def world() -> Iterator[World]:
    made = World()
    yield made
    for owner in made.owners.values():
        owner.may_answer.set()
    made.home.close()
    made.home.close()


def test_handles_dropped_in_a_garbage_cycle_are_freed(world: World) -> None:
    """Handles that the garbage collector finds are freed, many in one request."""
    cycle: list[Any] = [world.handle() for _ in range(100)]
    cycle.append(cycle)
    del cycle
    gc.collect()
    assert world.home.flush()
    assert len(world.owners["a"].cleared) == 100 and world.owners["a"].requests <= 5
    assert world.home.metrics()["freed"] == 100


def test_letting_go_does_not_wait_for_the_owner(world: World) -> None:
    """Dropping a handle never blocks on an owner that does not answer, and frees once it does."""
    world.owners["a"].may_answer.clear()
    for _ in range(3):
        world.handle("a")
        world.handle("b")
        assert not world.home.flush(timeout=0.05)
    world.owners["a"].may_answer.set()
    assert world.home.flush()
    assert len(world.owners["a"].cleared) == len(world.owners["b"].cleared) == 3


def test_many_threads_may_let_go_at_the_same_time(world: World) -> None:
    """Handles dropped by several threads are each freed once, and none is forgotten."""

    def work() -> None:
        for _ in range(300):
            world.handle()

    threads = [threading.Thread(target=work) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert world.home.flush()
    assert len(set(world.owners["a"].cleared)) == 1500
    metrics = world.home.metrics()
    assert metrics["live_shards"] == metrics["live_bytes"] == metrics["pending"] == 0


def test_shards_of_dead_owners_are_passed_over(world: World) -> None:
    """A dead owner's shards are skipped, and those of living ones freed."""
    world.handle("dead")
    world.handle("a")
    assert world.home.flush()
    assert world.home.metrics()["skipped"] == 1 and world.home.metrics()["freed"] == 1


def test_a_connect_that_breaks_does_not_end_the_freeing(world: World) -> None:
    """An unexpected error of one owner's connection is counted, and later handles are freed."""
    world.owners["b"].request = None  # type: ignore[method-assign, assignment]
    world.handle("b")
    assert world.home.flush()
    world.handle("a")
    assert world.home.flush()
    assert world.home.metrics()["failed"] == 1 and world.home.metrics()["freed"] == 1


def test_a_scope_of_one_thread_leaves_the_shards_of_others(world: World) -> None:
    """A rollout in the background may go on while a step's scope ends."""
    kept: list[RTensor] = []
    with world.home.scope():
        inside = world.handle()
        thread = threading.Thread(target=lambda: kept.append(world.handle()))
        thread.start()
        thread.join()
    assert inside.shards[0].freed and not kept[0].shards[0].freed


def test_a_scope_frees_also_when_its_step_fails(world: World) -> None:
    """Handles made inside a scope are freed when its block raises."""
    with pytest.raises(KeyError), world.home.scope():
        handle = world.handle()
        raise KeyError
    assert handle.shards[0].freed


def test_a_freed_shard_is_refused_without_asking(world: World) -> None:
    """Fetching a cleared handle fails at once, without a request to its owner."""
    handle = world.handle()
    functions.clear([handle])
    with pytest.raises(ShardNotFoundError, match="were cleared"):
        handle.localize()


def test_a_handle_outside_any_run_says_so() -> None:
    """Fetching a handle that belongs to no run fails with that reason."""
    shard = Shard(uuid.uuid4().hex, "a", (), "wire", {}, "int8", (4,))
    with pytest.raises(TensorError, match="neither the controller nor a worker"):
        RTensor.of(shard).localize()


def test_nothing_is_freed_after_the_end(world: World) -> None:
    """The run's end frees everything; late handles must not wait for owners that are gone."""
    handle = world.handle()
    world.home.close()
    del handle
    gc.collect()
    assert world.home.flush() and world.owners["a"].cleared == []
