"""Ray's object store as a place for tensors, on a real cluster beside a local run."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
import torch

import rolecall
from rolecall import LocalScheduler, RayScheduler, RTensor
from rolecall.errors import ShardNotFoundError, TensorError, WorkerConfigurationError, WorkerFailedError
from rolecall.scheduler.roles import Role
from rolecall.tensors.backends.ray import SMALLEST
from rolecall.tensors.backends.segments import MIB
from rolecall.tensors.dtypes import ITEMSIZE
from rolecall.tensors.fetch import Cache, Fetcher
from rolecall.tensors.shard import Shard, Where
from rolecall.testing import InProcessScheduler
from tests.clusters.ray_census import Census
from tests.clusters.ray_nodes import RayCluster, started
from tests.support.ray_cluster import SharedRay, check_none
from tests.tensors.stored_engines import Tensors, digest, random_bits

if TYPE_CHECKING:
    from rolecall.tensors.dtypes import Dense

pytestmark = pytest.mark.slow("clusters of its own, and that of Ray's tests")

WITHIN_S = 30.0

# A driver as anybody writes one, which says when it is connected.
PLAIN_DRIVER = """
import ray, sys, threading
ray.init(address=sys.argv[1], log_to_driver=False, logging_level="ERROR")
print("connected", flush=True)
threading.Event().wait(120)
"""


@pytest.fixture(autouse=True)
def nothing_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """No thread, and no object in the cluster that tests share.

    Descriptors come and go here while a run lives, which looks at its guard all the time.
    """
    census = request.getfixturevalue("census") if "cluster" in request.fixturenames else None
    before = set(threading.enumerate())
    yield
    if census is not None:
        gc.collect()  # handles in a traceback, which refers to itself
        check_none(lambda: {"objects": census.take()["objects"]})
    assert not [t.name for t in set(threading.enumerate()) - before if not t.name.startswith("asyncio_")]


@pytest.fixture(scope="module")
def cluster(ray_cluster: SharedRay) -> RayCluster:
    return ray_cluster.nodes


@pytest.fixture(scope="module")
def census(ray_cluster: SharedRay) -> Census:
    return ray_cluster.census


@pytest.fixture(scope="module")
def guarded() -> Iterator[RayCluster]:
    """A cluster that asks for a token; the last test that uses it ends its head."""
    with started(nodes=0, token=True) as found:
        yield found


@pytest.fixture
def doomed() -> Iterator[RayCluster]:
    """A cluster of one test's own, to be damaged."""
    with started(nodes=0) as found:
        yield found


def run_on(cluster: RayCluster, fileroot: Path, kind: type[Any] = LocalScheduler, **options: Any) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in cluster.exports.items():
            patch.setenv(name, value)
        known = {"tensors": "remote", "tensor_backend": "ray", "preload": ["torch"], "quiet": True}
        return kind(fileroot=fileroot, experiment="ray-store", trial="t", **{**known, **options})


@pytest.fixture(scope="module")
def s(cluster: RayCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalScheduler]:
    with run_on(cluster, tmp_path_factory.mktemp("run")) as made:
        yield made


@pytest.fixture(scope="module")
def workers(s: LocalScheduler) -> Role:
    return start(s, "w", 2)


def start(s: LocalScheduler, role: str, replicas: int, **spec: Any) -> Role:
    made = s.start(role, replicas=replicas, **spec)
    made.create_engine(Tensors)
    return made


def backends(*handles: RTensor) -> list[str]:
    return [shard.backend for handle in handles for shard in handle.shards]


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + WITHIN_S
    while not condition():
        assert time.monotonic() < deadline, f"not within {WITHIN_S:g} s: {what}"
        time.sleep(0.05)


def ended(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


@pytest.mark.filterwarnings("ignore:ComplexHalf")
def test_every_dtype_keeps_its_bits(workers: Role) -> None:
    """From worker to worker and to the controller."""
    dtypes = list(ITEMSIZE)
    handles = workers[0].call("random", dtypes, MIB)
    assert backends(*handles) == ["ray"] * len(dtypes)
    expected = [digest(random_bits(dtype, MIB, seed)) for seed, dtype in enumerate(dtypes)]
    assert workers[1].call("digests", handles) == expected
    assert [digest(tensor) for tensor in rolecall.localize(handles)] == expected


def test_sixty_four_mebibytes_of_bfloat16(workers: Role) -> None:
    """A large tensor arrives with its bytes at another worker and at the controller."""
    handle = workers[0].call("random", ["bfloat16"], 64 * MIB)[0]
    expected = digest(random_bits("bfloat16", 64 * MIB, 0))
    assert workers[1].call("digests", [handle]) == [expected]
    assert digest(handle.localize()) == expected


def test_what_lies_otherwise_in_memory_is_stored_as_it_reads(workers: Role) -> None:
    """Transposed, strided and expanded tensors are stored by value."""
    handles = workers[0].call("strided")
    assert backends(*handles) == ["ray"] * 4
    expected = [digest(tensor) for tensor in Tensors().strided()]
    assert workers[1].call("digests", handles) == expected


def test_handles_of_all_backends_are_read_in_one_batch(workers: Role) -> None:
    """Joined into one handle over two owners, sliced, and read by a worker and by the controller."""
    large, middle, small = ((n, 256) for n in (1024, 100, 4))
    parts = [workers[i].call("rows", *shape, float(i)) for i in (0, 1) for shape in (large, middle, small)]
    workers[1].call("prefer", "wire")
    parts.append(workers[1].call("rows", *large, 7.0))
    workers[1].call("prefer", "ray")
    assert backends(*parts) == ["ray", "shm", "wire"] * 2 + ["wire"]
    batch, expected = RTensor.cat(parts), torch.cat(rolecall.localize(parts))
    for i in (0, 1):
        assert workers[i].call("digests", [batch, batch[1000:1200]]) == [
            digest(expected),
            digest(expected[1000:1200]),
        ]
    assert torch.equal(batch.localize(), expected)


def test_a_reader_may_change_what_it_got(workers: Role) -> None:
    """The owner too: the stored bytes are nobody's to change."""
    handle = workers[0].call("rows", 1024, 256)
    for i in (0, 1):
        assert workers[i].call("spoil", handle) == 0
    handle.localize().zero_()
    for i in (0, 1):
        assert workers[i].call("total", handle) == 1024 * 256


def test_a_small_tensor_is_not_ray_s(workers: Role) -> None:
    """Tensors below the threshold are stored by the worker itself."""
    assert backends(workers[0].call("rows", 1, SMALLEST // 4)) == ["ray"]
    assert "ray" not in backends(workers[0].call("rows", 1, SMALLEST // 4 - 1))


def test_a_task_gets_its_tensors_too(workers: Role) -> None:
    """An async method is given tensors for handles, as a plain one is."""
    handle = workers[0].call("rows", 256, 256)
    assert workers[1].call("total_in_a_task", handle) == 256 * 256


def test_the_store_is_as_empty_after_a_thousand_mebibytes_as_before(s: LocalScheduler, workers: Role) -> None:
    """More than the store holds goes through it; what is freed is gone, and nothing grows in the workers."""

    def round_of(n: int) -> None:
        made = [workers[0].call("rows", 1024, 1024, float(n)) for _ in range(4)]
        assert workers[1].call("total", RTensor.cat(made)) == n * 4 * MIB

    round_of(1)
    s.home.flush()
    before = workers.call("costs")
    for n in range(2, 66):
        round_of(n)
    s.home.flush()
    after = workers.call("costs")
    assert after[0]["backend"]["shards"] == after[0]["backend"]["bytes"] == 0
    for old, new in zip(before, after, strict=True):
        assert new["descriptors"] <= old["descriptors"] + 2  # Ray opens connections as it likes
        assert new["tasks"] <= old["tasks"] + 4
    until(lambda: workers[0].call("in_use") == 0, "an empty object store")


def test_a_freed_shard_is_told_from_one_that_is_there(s: LocalScheduler, workers: Role) -> None:
    """Also by a reader that has read it before."""
    handle = workers[0].call("rows", 1024, 1024)
    (shard,) = handle.shards
    assert workers[1].call("fetch_at", msgspec.to_builtins(shard), {}) == "read"
    rolecall.clear(handle)
    s.home.flush()
    with pytest.raises(ShardNotFoundError, match="cleared"):
        handle.localize()
    assert "cleared" in workers[1].call("fetch_at", msgspec.to_builtins(shard), {})


def test_an_object_that_ray_no_longer_has_is_named(workers: Role) -> None:
    """Fetching an object that is lost fails with the shard's owner, on workers and controller."""
    handle = workers[0].call("rows", 1024, 1024)
    workers[0].call("lose", msgspec.to_builtins(handle.shards[0]))
    for read in (lambda: workers[1].call("total", handle), handle.localize):
        with pytest.raises(ShardNotFoundError, match=r"1 shard\(s\) not on w/0"):
            read()


def test_what_lies_in_the_store_is_seen_from_outside(workers: Role, census: Census) -> None:
    """As what a test leaves there would be."""
    handle = workers[0].call("rows", 1024, 1024)
    until(lambda: bool(census.take()["objects"]), "object that the census sees")
    assert handle.localize().sum() == MIB


@pytest.mark.parametrize(
    "wrong",
    [
        {"cluster": "00" * 28},
        {"cluster": 7},
        {"object": ""},
        {"object": "00"},
        {"object": "xy" * 28},
        {"object": 5},
        {"worker": "00" * 27},
        {"node": "é" * 28},
        {"object": "ff" * 28},
        {"worker": "ff" * 28},
        {"node": "ff" * 28},
        {"ip": "é"},
        {"ip": 1},
        {"port": 0},
        {"port": "80"},
        {"port": 1 << 20},
    ],
)
def test_a_malformed_place_never_reaches_ray(workers: Role, wrong: dict[str, Any]) -> None:
    """Ray would end the process over some of them."""
    handle = workers[0].call("rows", 1024, 256)
    assert workers[1].call("fetch_at", msgspec.to_builtins(handle.shards[0]), wrong) == "asks the owner"


def test_a_place_where_nothing_lies_is_an_error(workers: Role) -> None:
    """An object that never was, and an owner that never was."""
    handle = workers[0].call("rows", 1024, 256)
    (shard,) = handle.shards
    never = str(shard.where["object"])[:-8] + "ffffffff"
    assert "not on w/0" in workers[1].call("fetch_at", msgspec.to_builtins(shard), {"object": never})
    nobody = {"object": never, "worker": "ab" * 28, "port": 1}
    assert "its owner is gone" in workers[1].call("fetch_at", msgspec.to_builtins(shard), nobody)


def test_another_object_of_the_cluster_is_not_taken_for_the_shard(workers: Role) -> None:
    """An object of another shape at the shard's place is refused."""
    large, small = workers[0].call("rows", 1024, 256), workers[0].call("rows", 512, 256)
    where = small.shards[0].where
    assert "another object lies there" in workers[1].call("fetch_at", msgspec.to_builtins(large.shards[0]), where)


def test_a_worker_without_the_cluster_asks_the_owner(s: LocalScheduler, workers: Role) -> None:
    """Nothing listens at its address, which it notices at once; storing says what is wrong."""
    handle = workers[0].call("rows", 1024, 256)
    for role, address, says in (
        ("far", "127.0.0.1:1", "Connection refused"),
        ("lost", "ray://x:1", "not the host:port"),
    ):
        there = start(s, role, 1, env_vars={"RAY_ADDRESS": address})
        assert there[0].call("total", handle) == 1024 * 256
        with pytest.raises(TensorError, match=f"no connection to Ray at {address}: .*{says}"):
            there[0].call("rows", 1024, 256)
        s.delete_workers(role)


def test_without_an_address_the_variable_is_named(s: LocalScheduler) -> None:
    """A worker without RAY_ADDRESS fails and says which variable to set."""
    there = start(s, "nowhere", 1, env_vars={"RAY_ADDRESS": ""})
    with pytest.raises(TensorError, match="set RAY_ADDRESS"):
        there[0].call("rows", 1024, 256)
    s.delete_workers("nowhere")


def test_the_owner_s_death_is_an_error_at_once(s: LocalScheduler, workers: Role) -> None:
    """For a worker that reads from Ray, which must hear of it from Ray, and for the controller."""
    owner = start(s, "owner", 1)
    handle = owner[0].call("rows", 1024, 1024)
    assert workers[1].call("total", handle) == MIB
    os.kill(owner[0].call("pid"), signal.SIGKILL)
    begun = time.monotonic()
    with pytest.raises(ShardNotFoundError, match="its owner is gone"):
        workers[1].call("total", handle)
    with pytest.raises(ShardNotFoundError, match="its owner is gone"):
        handle.localize()
    assert time.monotonic() - begun < 15
    s.delete_workers("owner")


def test_a_connected_worker_ends_by_its_signals_and_shows_its_stacks(s: LocalScheduler) -> None:
    """Ray catches SIGTERM; the worker ends by it nevertheless, at once."""
    there = start(s, "ends", 1)
    pid = there[0].call("pid")
    there[0].call("rows", 1024, 256)
    busy = there[0].submit("sleep", 100.0)
    until(lambda: "stored_engines.py" in there[0].stacks(), "the engine's frame")
    os.kill(pid, signal.SIGTERM)
    with pytest.raises(WorkerFailedError) as failed:
        busy.result()
    assert failed.value.signal == signal.SIGTERM
    s.delete_workers("ends")


def test_an_engine_may_use_ray_itself(s: LocalScheduler, workers: Role) -> None:
    """Its connection serves the store too; when it ends that, what lay in the store is lost, and that alone."""
    there = start(s, "user", 1)
    there[0].call("join_ray")
    handle = there[0].call("rows", 1024, 256)
    assert backends(handle) == ["ray"]
    assert workers[1].call("total", handle) == there[0].call("total", handle) == 1024 * 256
    there[0].call("leave_ray")
    with pytest.raises(ShardNotFoundError, match="has left Ray"):
        there[0].call("total", handle)
    with pytest.raises(ShardNotFoundError, match="its owner is gone"):
        workers[1].call("total", handle)
    new = there[0].call("rows", 1024, 256)
    assert backends(new) == ["shm"] and workers[1].call("total", new) == 1024 * 256
    s.delete_workers("user")


def test_workers_on_the_cluster_s_nodes_find_its_store_by_themselves(cluster: RayCluster, tmp_path: Path) -> None:
    """And so do their forks. Nothing says where it is but the scheduler's own name."""
    with run_on(cluster, tmp_path, RayScheduler) as s:
        workers = start(s, "on-ray", 2)
        handle = workers[0].call("rows", 1024, 256)
        forks = workers.fork("forked")
        forks.create_engine(Tensors)
        handles = [handle, workers[1].call("rows", 1024, 256), forks[1].call("rows", 1024, 256)]
        assert backends(*handles) == ["ray"] * 3
        assert forks[0].call("total", RTensor.cat(handles)) == 3 * 1024 * 256


def test_a_cluster_with_a_token_is_joined_with_it(guarded: RayCluster, tmp_path: Path) -> None:
    """It is in the environment, as for everything that talks to that cluster; without it the store is refused."""
    with run_on(guarded, tmp_path) as s:
        workers = start(s, "w", 2)
        handle = workers[0].call("rows", 1024, 256)
        assert backends(handle) == ["ray"] and workers[1].call("total", handle) == 1024 * 256
        without = start(s, "without", 1, env_vars={"RAY_AUTH_MODE": "disabled"})
        with pytest.raises(TensorError, match=r"no connection to Ray .* token"):
            without[0].call("rows", 1024, 256)


def test_the_raylet_s_death_loses_what_it_held_and_nothing_else(doomed: RayCluster, tmp_path: Path) -> None:
    """Owner, reader and controller live on and say what happened; new tensors take another way.

    The workers are forked from a template that has imported Ray already.
    """
    with run_on(doomed, tmp_path, preload=["torch", "ray"]) as s:
        workers = start(s, "w", 2)
        held = workers[0].call("rows", 1024, 1024)
        assert workers[1].call("total", held) == MIB
        raylet = doomed.kill("raylet")
        until(lambda: ended(raylet), "the raylet's death")
        for i in (0, 1):
            with pytest.raises(ShardNotFoundError, match="the raylet of this host has died"):
                workers[i].call("total", held)
        with pytest.raises(ShardNotFoundError, match="the raylet of this host has died"):
            held.localize()
        new = workers[0].call("rows", 1024, 1024)
        assert backends(new) == ["shm"] and workers[1].call("total", new) == MIB
        del held
        s.home.flush()
        assert [costs["backend"]["connected"] for costs in workers.call("costs")] == [False, False]


def test_a_worker_outlives_the_head(guarded: RayCluster, tmp_path: Path) -> None:
    """Ray ends a driver that misses the head for a while; a worker is none, and goes on moving tensors."""
    impatient = {"RAY_gcs_rpc_server_reconnect_timeout_s": "3"}
    with run_on(guarded, tmp_path) as s:
        workers = start(s, "w", 2, env_vars=impatient)
        held = [workers[i].call("rows", 1024, 1024) for i in (0, 1)]
        plain = [sys.executable, "-c", PLAIN_DRIVER, guarded.exports["RAY_ADDRESS"]]
        environment = {**os.environ, **guarded.exports, **impatient}
        with subprocess.Popen(plain, env=environment, stdout=subprocess.PIPE) as driver:
            assert driver.stdout is not None and driver.stdout.readline() == b"connected\n"
            guarded.kill("gcs_server")
            assert driver.wait(60) != 0
        new = workers[0].call("rows", 1024, 1024)
        assert backends(new) == ["ray"]
        assert [workers[1].call("total", handle) for handle in (*held, new)] == [MIB] * 3


def test_the_backend_is_chosen_by_name(tmp_path: Path) -> None:
    """Each backend stores where its name says, and an unknown one is refused with the list."""
    with pytest.raises(WorkerConfigurationError, match="unknown tensor backend: 'plasma'; use one of shm, wire, ray"):
        LocalScheduler(tensor_backend="plasma", fileroot=tmp_path, quiet=True)  # type: ignore[arg-type]
    with pytest.raises(WorkerConfigurationError, match="connects to no Ray"):
        InProcessScheduler(tensor_backend="ray", fileroot=tmp_path, quiet=True)
    for backend in ("wire", "shm"):
        with LocalScheduler(tensor_backend=backend, tensors="remote", fileroot=tmp_path, quiet=True) as s:
            handle = start(s, "w", 1)[0].call("rows", 1024, 256)
            assert backends(handle) == [backend] and handle.localize().sum() == 1024 * 256


class Slow:
    """A backend that takes its time, and remembers where it was asked."""

    name, private, waits = "slow", False, True

    def __init__(self) -> None:
        self.asked_on: set[int] = set()

    def put(self, shard_id: str, tensor: Dense, dtype: str) -> Where | None:
        return {}

    def fetch(self, shards: Sequence[Shard]) -> list[Dense | None]:
        self.asked_on.add(threading.get_ident())
        return [torch.zeros(shard.numel) for shard in shards]

    def delete(self, shards: Sequence[Shard]) -> None: ...
    def metrics(self) -> dict[str, Any]:
        return {}

    def close(self) -> None: ...


def test_a_backend_that_waits_is_never_asked_on_an_event_loop() -> None:
    """However small the tensor: the loop serves others meanwhile."""
    slow = Slow()

    def nobody(owner: str, addresses: tuple[str, ...]) -> Any:
        raise AssertionError("the owner is not asked")

    fetcher = Fetcher(nobody, Cache(0), {"slow": slow})
    handle = RTensor.of(Shard("0" * 32, "w/0", (), "slow", {}, "float32", (2,)))
    assert asyncio.run(fetcher.afetch([handle]))[0].tolist() == [0.0, 0.0]
    assert slow.asked_on and threading.get_ident() not in slow.asked_on
