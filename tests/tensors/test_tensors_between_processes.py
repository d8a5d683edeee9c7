"""Tensors between real processes: a controller and workers that each have a store."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from rolecall import errors
from rolecall.tensors import functions
from rolecall.tensors.backends.shm import ShmBackend
from rolecall.tensors.connections import Connections
from rolecall.tensors.fetch import Cache, Fetcher
from rolecall.tensors.handle import RTensor, pack_handles, read_handles
from rolecall.tensors.lifetime import Home
from rolecall.transport.handshake import Hello
from rolecall.transport.loop import IOThread
from tests.support.checkout import PYTHONPATH
from tests.tensors.open_files import open_descriptors
from tests.tensors.tensor_worker import TOKEN

pytestmark = pytest.mark.slow("its workers import torch")

NAMES = ("a", "b", "far")  # the last one as if on another host


class Run:
    """The controller's side of a few workers."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.io = IOThread()
        self.workers: dict[str, subprocess.Popen[bytes]] = {}
        self.connections = Connections(TOKEN, loop=self.io.loop, hello=Hello(name="controller"), context=self)
        self.fetcher = Fetcher(self.connections, Cache(0), {"shm": ShmBackend()})
        self.home = Home(self.fetcher)
        self.adopt = self.home.adopt

    def start(self, name: str, backend: str = "shm") -> None:
        argv = [sys.executable, "-m", "tests.tensors.tensor_worker", name, str(self.folder / name), backend]
        environment = os.environ | {"PYTHONPATH": PYTHONPATH}
        self.workers[name] = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
        stdout = self.workers[name].stdout
        assert stdout is not None and stdout.readline() == b"ready\n"

    def call(self, name: str, method: str, value: Any = None) -> Any:
        return self.peer(name).request(method, value, timeout=60).result()

    def peer(self, name: str) -> Any:
        return self.connections(name, (f"unix:{self.folder / name}",))

    def close(self) -> None:
        for worker in self.workers.values():
            worker.kill()
            worker.communicate()
        self.home.close()
        self.connections.close()
        self.io.close()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    run = Run(tmp_path_factory.mktemp("w"))
    for name in NAMES:
        run.start(name, "wire" if name == "far" else "shm")
    for name in run.workers:
        run.call(name, "metrics")
    yield run
    run.close()


@pytest.fixture
def run(shared: Run) -> Iterator[Run]:
    """Everything of the test before is freed, and everything of this one."""
    yield shared
    gc.collect()
    assert shared.home.flush()
    for name in shared.workers:
        assert shared.call(name, "metrics")["store"]["bytes"] == 0


SIZES = [0, 3, 30_000, 3 << 20]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("source", ["a", "far"])
@pytest.mark.parametrize("target", ["a", "b", "far"])
def test_a_handle_given_to_a_worker_arrives_as_its_tensor(run: Run, source: str, target: str, size: int) -> None:
    """From worker to worker, and to its owner; never through the controller."""
    handles = run.call(source, "make", {"shape": [size], "count": 3})
    before = run.fetcher.metrics()
    assert [type(h) for h in handles] == [RTensor] * 3
    assert run.call(target, "total", handles) == 3 * size
    assert run.fetcher.metrics() == before


@pytest.mark.parametrize("target", ["a", "b", "far"])
def test_what_a_worker_changes_is_its_own(run: Run, target: str) -> None:
    """An engine may work in place: shard, cache and later readers keep the values."""
    for size in SIZES:
        handles = run.call("a", "make", {"shape": [size], "count": 2})
        for _ in range(3):
            assert run.call(target, "spoil", handles) == 0
        assert [float(t.sum()) for t in functions.localize(handles)] == [0, size]


def test_a_split_fetches_only_its_rows(run: Run) -> None:
    """Fetching one part of a split transfers the bytes of that part."""
    (handle,) = run.call("far", "make", {"shape": [64, 1000]})
    before = run.call("far", "metrics")["store"]["served_bytes"]
    run.call("b", "total", [handle.split(8)[3]])
    assert run.call("far", "metrics")["store"]["served_bytes"] - before == 8 * 1000 * 4


def test_a_batch_partitioned_over_workers_and_joined_again_is_the_batch(run: Run) -> None:
    """Parts on three workers, joined as handles, equal the original."""
    batch = torch.arange(4096.0 * 300).view(300, 4096)
    (whole,) = run.call("a", "leave", [batch])
    parts = [run.call(name, "leave", [part]) for name, part in zip(("a", "b", "far"), whole.split(110), strict=True)]
    joined = RTensor.cat([part for (part,) in parts])
    assert torch.equal(joined.localize(), batch)
    assert run.call("b", "total", [joined]) == float(batch.double().sum())


def test_owners_are_asked_once_for_all_their_shards(run: Run) -> None:
    """Fifty shards of one owner are fetched in one request."""
    handles = run.call("far", "make", {"shape": [5], "count": 50})
    before = run.call("b", "metrics")["fetch"]["fetches"]
    asked = run.call("far", "metrics")["store"]["served"]
    run.call("b", "total", handles)
    assert run.call("b", "metrics")["fetch"]["fetches"] == before + 1
    assert run.call("far", "metrics")["store"]["served"] == asked + 50


def test_a_second_fetch_over_a_connection_comes_from_the_cache(run: Run) -> None:
    """A range of a shard that was fetched before is not transferred again."""
    handles = run.call("far", "make", {"shape": [100_000]})
    run.call("b", "total", handles)
    served = run.call("far", "metrics")["store"]["served"]
    run.call("b", "total", [handles[0][10:20]])
    assert run.call("far", "metrics")["store"]["served"] == served


def test_nested_values_come_back_in_their_shape(run: Run) -> None:
    """Tensors nested in dicts, lists and tuples become handles and tensors again, and the rest stays."""
    value = {"ids": torch.arange(6).view(2, 3), "n": [1, (torch.ones(2, dtype=torch.bfloat16), "x")]}
    left = run.call("a", "leave", value)
    assert isinstance(left["ids"], RTensor) and isinstance(left["n"][1][0], RTensor)
    back = functions.localize(left)
    assert torch.equal(back["ids"], value["ids"]) and torch.equal(back["n"][1][0], value["n"][1][0])
    assert back["n"][0] == 1 and back["n"][1][1] == "x" and type(back["n"][1]) is tuple


def test_batches_are_left_without_their_padding(run: Run) -> None:
    """A worker trims trailing padding before it stores a batch."""
    left = run.call("a", "leave", {"attention_mask": torch.tensor([[1, 1, 0]]), "input_ids": torch.ones(1, 3)})
    assert left["input_ids"].shape == (1, 2)


def test_a_tensor_in_two_places_is_stored_once(run: Run) -> None:
    """A tensor, or a handle, that stands in several places of a value becomes one shard per owner."""
    tensor = torch.ones(3)
    left = functions.remotize({"x": tensor, "y": [tensor, tensor]}, worker=run.peer("a"))
    assert run.call("a", "metrics")["store"]["shards"] == 3  # the connection made three of it
    again = run.call("b", "leave", [left["x"]] * 3)
    assert run.call("b", "metrics")["store"]["shards"] == 1 and again[0].shards == again[2].shards


def test_the_controller_may_put_values_on_a_worker(run: Run) -> None:
    """`remotize` stores a value on a worker of choice, and another worker reads it."""
    left = functions.remotize({"x": torch.arange(10)}, worker=run.peer("b"))
    assert left["x"].shards[0].owner == "b"
    assert run.call("a", "total", [left["x"]]) == 45


def test_fetching_works_in_a_task(run: Run) -> None:
    """`alocalize` fetches from a coroutine."""

    async def main() -> float:
        handles = run.call("a", "make", {"shape": [2 << 20], "count": 2})
        value = await functions.alocalize({"x": RTensor.cat(handles)})
        return float(value["x"].sum())

    assert asyncio.run(main()) == 2 << 20


# Lifetime


def test_shards_go_with_their_last_handle(run: Run) -> None:
    """Any handle of the shard keeps it: a row of it, a join with it, the same shard decoded again."""
    (handle,) = run.call("a", "make", {"shape": [10, 3]})
    row = RTensor.cat([handle[3:4], handle[:1]])
    del handle
    gc.collect()
    assert run.home.flush() and run.call("a", "metrics")["store"]["shards"] == 1
    assert row.localize().shape == (2, 3)
    del row
    gc.collect()
    assert run.home.flush() and run.call("a", "metrics")["store"]["shards"] == 0


def test_the_same_shard_met_twice_is_one_object(run: Run) -> None:
    """A shard that arrives again is the one already known, and is freed after the last handle only."""
    (handle,) = run.call("a", "make", {"shape": [3]})
    (again,) = read_handles(pack_handles([handle]), run)
    assert again.shards[0] is handle.shards[0]
    del handle
    gc.collect()
    assert run.home.flush() and again.localize().shape == (3,)


def test_a_scope_frees_what_became_known_inside_it(run: Run) -> None:
    """Handles from before the scope and those that `keep` names survive it."""
    before = run.call("a", "make", {"shape": [1]})
    with run.home.scope():
        inside = run.call("a", "make", {"shape": [2], "count": 3})
        kept = run.home.keep(inside[:1])
    assert run.home.flush() and run.call("a", "metrics")["store"]["shards"] == 2
    functions.localize([before, kept])
    with pytest.raises(errors.ShardNotFoundError):
        functions.localize(inside)


def test_what_an_inner_scope_keeps_belongs_to_the_outer_one(run: Run) -> None:
    """A kept handle lives until the enclosing scope ends."""
    with run.home.scope():
        with run.home.scope():
            kept = run.home.keep(run.call("a", "make", {"shape": [2]}))
        assert functions.localize(kept)[0].shape == (2,)
    with pytest.raises(errors.ShardNotFoundError):
        functions.localize(kept)


def test_clearing_frees_and_clearing_twice_does_no_harm(run: Run) -> None:
    """Cleared shards are freed at once, and counted once."""
    handles = run.call("a", "make", {"shape": [2], "count": 3})
    assert functions.clear({"x": handles}) == 3
    assert functions.clear(handles) == 3
    assert run.home.flush() and run.call("a", "metrics")["store"]["shards"] == 0
    freed = run.home.metrics()["freed"]
    del handles
    gc.collect()
    assert run.home.flush() and run.home.metrics()["freed"] == freed


def test_a_cleared_shard_is_refused_by_name_also_in_another_worker(run: Run) -> None:
    """A worker that is given an outdated description fails with the shard's id."""
    for source in ("a", "far"):
        handles = run.call(source, "make", {"shape": [300_000]})
        packed, shard_id = pack_handles(handles[:1]), handles[0].shards[0].id
        functions.clear(handles)
        assert run.home.flush()
        with pytest.raises(errors.ShardNotFoundError, match=shard_id):
            run.call("b", "total", read_handles(packed))


def test_thousands_of_handles_go_in_a_few_requests(run: Run) -> None:
    """Freeing is batched."""
    handles = run.call("a", "make", {"shape": [1], "count": 3000})
    asked = run.home.metrics()["requests"]
    del handles
    gc.collect()
    assert run.home.flush()
    assert run.home.metrics()["requests"] - asked < 300


def test_steps_leave_stores_caches_and_descriptors_flat(run: Run) -> None:
    """Make, hand on, join, split, fetch, free; over and over."""

    def step() -> None:
        with run.home.scope():
            made = [run.call(name, "make", {"shape": [8, 40_000], "count": 3}) for name in ("a", "far")]
            joined = RTensor.cat([h for hs in made for h in hs])
            for name, part in zip(("a", "b", "far"), joined.chunk(3), strict=True):
                run.call(name, "total", [part])
            functions.localize(joined[::7])

    def seen(what: str) -> list[int]:
        assert run.home.flush()
        metrics = [run.call(name, "metrics") for name in NAMES]
        return [m["store"]["bytes"] if what == "bytes" else m["fds"] for m in metrics]

    for _ in range(5):
        step()
    before = seen("fds")
    for _ in range(30):
        step()
    # A segment more may be in use when a reader lets go a moment later than it answers; 90 tensors were made on each.
    assert all(now <= then + 20 for now, then in zip(seen("fds"), before, strict=True))
    assert seen("bytes") == [0, 0, 0]
    assert run.home.metrics()["live_shards"] == run.home.metrics()["live_bytes"] == run.home.metrics()["pending"] == 0


def test_a_dead_owners_shards_are_lost_by_name_and_freeing_them_harmless(tmp_path: Path) -> None:
    """What was mapped stays; what was not is an error that names owner and shards, soon."""
    run = Run(tmp_path)
    run.start("dead")
    run.start("alive")
    big = run.call("dead", "make", {"shape": [1 << 20]})
    small = run.call("dead", "make", {"shape": [4]})
    mapped = functions.localize(big)[0]
    run.workers["dead"].send_signal(signal.SIGKILL)
    run.workers["dead"].wait()
    assert mapped.sum() == 0
    with pytest.raises(errors.ShardNotFoundError, match=r"on dead .*owner is gone"):
        functions.localize(small)
    with pytest.raises(errors.ShardNotFoundError, match=r"on dead .*owner is gone"):
        run.call("alive", "total", small)
    del small, big
    gc.collect()
    assert run.home.flush()
    assert run.home.metrics()["live_shards"] == 0 and run.home.metrics()["pending"] == 0
    run.close()


def test_descriptors_of_readers_follow_their_tensors(run: Run) -> None:
    """Each mapped tensor holds one descriptor, which is closed with it."""
    before = open_descriptors()
    tensors = functions.localize(run.call("a", "make", {"shape": [1 << 20], "count": 5}))
    assert open_descriptors() == before + 5
    del tensors
    gc.collect()
    assert open_descriptors() == before
