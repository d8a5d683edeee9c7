"""Two hosts for real: each node of a cluster in a network namespace, its address its own, and a cable to pull."""

from __future__ import annotations

import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rolecall import Role, Scheduler
from rolecall.errors import WorkerFailedError
from rolecall.guard.runtime import page_path
from rolecall.protocol.progress import parse
from rolecall.transport.address import this_host
from tests.support import live, sample_engines
from tests.support.hosts_under_test import Hosts
from tests.support.waiting import wait_for
from tests.support.worker_processes import guard_of, living, processes

pytestmark = pytest.mark.slow("a cluster of its own", seconds=18)

HALF_A_NODE_AND_MORE: dict[str, Any] = {"cpu": 65, "mem": 1}  # so that two workers are on two nodes
LEASE_S = 20.0
TOLD_WITHIN_S = 15.0


@pytest.fixture(scope="module", params=["slurm", "ray"])
def hosts(request: pytest.FixtureRequest) -> Hosts:
    """Whose cables may be pulled."""
    found: Hosts = request.getfixturevalue(f"hosts_of_{request.param}")
    return found


@pytest.fixture
def s(hosts: Hosts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scheduler]:
    """Nothing of it is left on the cluster, nor on a host that could be reached to the end, nor on one that was not."""
    options: dict[str, Any] = {"experiment": "hosts", "trial": "t", "fileroot": tmp_path, "preload": []}
    with hosts.scheduler(monkeypatch, lease_s=LEASE_S, **options) as scheduler:
        yield scheduler
        folders = [hosts.root(address) / live.runtime_dir(scheduler).relative_to("/") for address in hosts.cables]
        for address in hosts.cables:
            hosts.plug(address)
    wait_for(lambda: not processes(scheduler.run_id), LEASE_S, "end of what was cut off")
    assert [folder for folder in folders if folder.exists()] == []
    assert hosts.left() == []
    hosts.mend()


def pair(s: Scheduler) -> Role:
    role = s.start("actor", 2, **HALF_A_NODE_AND_MORE)
    role.create_engine(sample_engines.Echo)
    return role


def addresses(s: Scheduler) -> list[str]:
    return [worker.ip for worker in s.get_workers("actor")]


def on_host(s: Scheduler, index: int) -> Callable[[], dict[int, str]]:
    """Looks for what the guard of a worker owns, and for itself."""
    guard = guard_of(s.run_id, f"actor/{index}")

    def look() -> dict[int, str]:
        found = processes(s.run_id, f"ROLECALL_WORKER=actor/{index}")
        return found | ({guard.pid: "guard"} if living([guard]) else {})

    return look


def calls_ended(s: Scheduler, index: int, root: Path) -> Callable[[], int]:
    """Reads from the page that a worker writes for its guard how many calls it has answered."""
    worker = s.inspect().worker(f"actor/{index}")
    page = page_path(str(live.runtime_dir(s)), worker.guard, worker.id)
    return lambda: parse((root / page[1:]).read_bytes()).ended


def test_workers_of_two_hosts_are_called_over_the_network_and_pass_tensors(s: Scheduler, hosts: Hosts) -> None:
    """Guards call home, and workers are called, at addresses of their own."""
    role = pair(s)
    assert sorted(addresses(s)) == sorted(hosts.cables)
    assert this_host() not in {guard.host_id for guard in s.inspect().guards}
    assert role.call("greet") == ["hello", "hello"]
    role.with_options(engine="tensors").create_engine(sample_engines.Tensors)
    first, second = (worker.with_options(engine="tensors") for worker in (role[0], role[1]))
    made = first.with_options(engine="tensors", tensors="remote").call("make", 1 << 18, 2.0)
    assert second.call("total", made["x"]) == 2.0 * (1 << 20)
    fork = role.fork("ref")
    assert [w.ip for w in s.get_workers("ref")] == addresses(s)
    fork.create_engine(sample_engines.Echo)
    assert fork.call("greet") == ["hello", "hello"]


def test_a_pulled_cable_fails_the_call_and_the_cut_off_guard_fences_itself(s: Scheduler, hosts: Hosts) -> None:
    """The caller knows within 15 s; by the lease's end the guard has killed what nobody can reach any more."""
    role = pair(s)
    pending = role[1].submit("sleep", 3600.0)
    owned = on_host(s, 1)
    assert len(owned()) >= 2
    pulled = time.monotonic()
    hosts.pull(addresses(s)[1])
    with pytest.raises(WorkerFailedError, match="nothing was heard of it"):
        pending.result()
    assert time.monotonic() - pulled < TOLD_WITHIN_S
    assert role[0].call("greet") == "hello"
    wait_for(lambda: not owned(), LEASE_S + 3, "end of what the cut-off guard owns")
    assert time.monotonic() - pulled < LEASE_S + 3


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder that all hosts see."""
    with tempfile.TemporaryDirectory(prefix="rct-shared-", dir="/tmp") as folder:
        yield Path(folder)


def test_a_late_answer_of_a_host_that_was_given_up_is_refused(s: Scheduler, hosts: Hosts, shared: Path) -> None:
    """The cable comes back before the lease lapses, the guard cannot act yet, and the worker answers: with a handle,
    which the controller would adopt.
    """
    role = pair(s)
    late = role.with_options(engine="late", tensors="remote")
    late.create_engine(sample_engines.Tensors)
    made = late.call("make", 3)
    adopted = s.home.metrics()["adopted"]
    assert adopted == len({shard.id for handles in made for handle in handles.values() for shard in handle.shards})
    gate = shared / "gate"
    pending = late[1].submit("make_late", str(gate))
    wait_for(gate.with_suffix(".begun").exists, 5, "call that has begun")
    guard, address = guard_of(s.run_id, "actor/1"), addresses(s)[1]
    owned, ended = on_host(s, 1), calls_ended(s, 1, hosts.root(address))
    before = ended()
    hosts.pull(address)
    with pytest.raises(WorkerFailedError) as told:
        pending.result()
    os.kill(guard.pid, signal.SIGSTOP)
    try:
        hosts.plug(address)
        gate.touch()
        wait_for(lambda: ended() > before, 5, "worker that has answered")
        with pytest.raises(WorkerFailedError) as again:
            pending.result()
        assert str(again.value) == str(told.value)
        assert s.home.metrics()["adopted"] == adopted
        with pytest.raises(WorkerFailedError):
            role[1].call("greet")
    finally:
        os.kill(guard.pid, signal.SIGCONT)
    wait_for(lambda: not owned(), LEASE_S, "end of what the guard owns")
    log = Path(s.run_dir, "logs", f"guard-{s.inspect().worker('actor/1').guard}.log")
    said = (hosts.root(address) / log.relative_to("/")).read_text()
    assert "ending: the controller closed the connection" in said  # told to end, before its lease would have lapsed
    assert s.home.metrics()["adopted"] == adopted
    assert role[0].call("greet") == "hello"


def test_a_role_is_started_again_after_its_host_was_lost(s: Scheduler, hosts: Hosts) -> None:
    """What is left of it is deleted, the job too, and another one takes its place."""
    pair(s)
    address = addresses(s)[1]
    hosts.pull(address)
    with pytest.raises(WorkerFailedError):
        s.call_engine("actor/1", "sleep", None, 3600.0)
    hosts.plug(address)
    s.delete_workers("actor")
    again = s.start("actor", 2, **HALF_A_NODE_AND_MORE)
    again.create_engine(sample_engines.Echo)
    assert again.call("greet") == ["hello", "hello"]
