"""Hosts that share no file with the controller but rolecall and the user's code: the connection carries the rest."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rolecall import Role, Scheduler
from rolecall.errors import EngineCallError, WorkerCreationError, WorkerFailedError
from rolecall.guard.claims import CGROUP, CLAIMS, SEEN
from rolecall.guard.runtime import PAGE
from tests.support import sample_engines
from tests.support.hosts_under_test import OfSlurm, of_slurm
from tests.support.waiting import wait_for
from tests.support.worker_processes import processes

pytestmark = pytest.mark.slow("a cluster of its own")

OPTIONS: dict[str, Any] = {"experiment": "hosts", "trial": "t", "preload": []}
HALF_A_NODE_AND_MORE: dict[str, Any] = {"cpu": 65, "mem": 1}  # so that two workers are on two nodes


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OfSlurm]:
    """Neither run directories nor runtime directories are shared."""
    private = (tmp_path_factory.getbasetemp(), os.environ["TMPDIR"])
    with of_slurm(*(f"--private={folder}" for folder in private)) as found:
        yield found


@pytest.fixture
def s(hosts: OfSlurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scheduler]:
    """Afterwards the nodes have logs, but no socket of the run."""
    with hosts.scheduler(monkeypatch, **OPTIONS, fileroot=tmp_path / "root") as scheduler:
        yield scheduler
    assert left_on(hosts) == []


def seen_on(hosts: OfSlurm, address: str, path: str | Path) -> Path:
    """Where a path of a host can be read from here."""
    return hosts.root(address) / Path(path).relative_to("/")


def left_on(hosts: OfSlurm) -> list[Path]:
    """Runtime directories."""
    places = [seen_on(hosts, address, os.environ["TMPDIR"]) for address in hosts.cables]
    return [found for place in places for found in place.glob("rolecall-*/*")]


def pair(s: Scheduler) -> Role:
    return s.start("actor", 2, **HALF_A_NODE_AND_MORE)


def test_calls_work_and_tensors_come_back_and_pass_from_host_to_host(s: Scheduler, hosts: OfSlurm) -> None:
    """Whole tensors, handles and forks work where no folder is shared."""
    role = pair(s)
    assert sorted(worker.ip for worker in s.get_workers("actor")) == sorted(hosts.cables)
    role.create_engine(sample_engines.Tensors)
    whole = role[0].call("make", 1 << 18, 2.0)["x"]
    assert float(whole.sum()) == 2.0 * (1 << 20)
    handle = role[0].with_options(tensors="remote").call("make", 1 << 18, 3.0)["x"]
    assert role[1].call("total", handle) == 3.0 * (1 << 20)
    fork = role.fork("ref")
    fork.create_engine(sample_engines.Echo)
    assert fork.call("greet") == ["hello", "hello"]


def test_logs_lie_on_the_hosts_in_the_folders_that_they_would_have_here(s: Scheduler, hosts: OfSlurm) -> None:
    """Each host has the logs of its own workers and guard, at the same path."""
    pair(s)
    logs, first, second = Path(s.run_dir, "logs"), *(worker.ip for worker in s.get_workers("actor"))
    there = {address: {path.name for path in seen_on(hosts, address, logs).iterdir()} for address in (first, second)}
    assert there[first] >= {"actor-0.log", "guard-g1-0.log"} and any(name.startswith("slurm-") for name in there[first])
    assert there[second] >= {"actor-1.log", "guard-g1-1.log"}
    assert list(logs.iterdir()) == []


def test_errors_and_ends_are_told_with_what_the_worker_wrote(s: Scheduler) -> None:
    """An exception and an exit code arrive from a host that shares no file."""
    role = pair(s)
    role.create_engine(sample_engines.Echo)
    with pytest.raises(EngineCallError, match="no luck"):
        role[0].call("fail", "no luck")
    with pytest.raises(WorkerFailedError) as caught:
        role[1].call("leave", 7)
    assert caught.value.exit_code == 7
    assert role[0].call("greet") == "hello"


def test_the_end_of_a_job_is_told_with_slurms_complaint(
    s: Scheduler, hosts: OfSlurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its output lies where it cannot be read from. Where all was killed at once, files without a secret stay.

    The next guards there, of another run, remove them.
    """
    role = pair(s)
    role.create_engine(sample_engines.Hungry)
    with pytest.raises(WorkerFailedError, match=r"FAILED \(NonZeroExitCode\): .*exceeded memory limit"):
        role[0].call("eat", 2048)
    s.delete_workers("actor")
    left = left_on(hosts)
    files = [path for place in left for path in place.rglob("*") if not (path.is_socket() or path.is_dir())]
    assert [path for path in files if path.suffix != PAGE and path.name not in (CGROUP, CLAIMS, SEEN)] == []
    with hosts.scheduler(monkeypatch, **OPTIONS, fileroot=tmp_path / "other") as other:
        pair(other)
        wait_for(lambda: not any(place.exists() for place in left), 10, "end of what was left")


def test_a_job_that_cannot_start_is_told_with_slurms_complaint(
    hosts: OfSlurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The output of a failed job reaches the error though its file is on another host."""
    with (
        hosts.scheduler(monkeypatch, **OPTIONS, fileroot=tmp_path, python="/no/such/python") as other,
        pytest.raises(WorkerCreationError, match=r"FAILED \(NonZeroExitCode\): .*/no/such/python: No such file"),
    ):
        other.start("actor", cpu=1, mem=1)


def test_nothing_is_left_on_the_hosts_after_a_delete(s: Scheduler, hosts: OfSlurm) -> None:
    """A worker's descendants and the job are gone when the deletion returns."""
    role = pair(s)
    role.create_engine(sample_engines.Parent)
    assert processes(s.run_id, "ROLECALL_WORKER=actor/0")
    s.delete_workers("actor")
    assert processes(s.run_id) == {}
    assert hosts.cluster.jobs() == {}
