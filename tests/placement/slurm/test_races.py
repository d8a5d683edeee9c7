"""Schedulers that are closed or interrupted while a role is asked for leave no job."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from rolecall import SlurmScheduler
from rolecall.errors import WorkerConfigurationError, WorkerCreationError
from tests.placement.slurm.fake_slurm import FakeSlurm
from tests.support.slurm_cluster import SlurmCluster
from tests.support.waiting import wait_for

Make = Callable[..., SlurmScheduler]
SMALL: dict[str, Any] = {"cpu": 1, "mem": 1}


@pytest.fixture
def gate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cluster: SlurmCluster) -> Path:
    """A site's wrapper about `sbatch` that gives a job to the real one and keeps its answer until this file exists."""
    real, gate = shutil.which("sbatch"), tmp_path / "gate"
    wrapper = FakeSlurm(tmp_path / "bin", programs=())
    lines = f'answer=$({real} "$@" <{wrapper.folder}/sbatch.input)\nuntil [[ -e {gate} ]]; do sleep 0.05; done'
    wrapper.does("sbatch", f"{lines}\necho $answer")
    monkeypatch.setenv("PATH", wrapper.environment["PATH"])
    return gate


def test_a_role_that_is_asked_for_when_the_scheduler_is_closed_leaves_no_job(
    make: Make, cluster: SlurmCluster, gate: Path
) -> None:
    """Slurm has taken the job, and the scheduler does not know it yet. `close` waits for that."""
    s = make()
    with ThreadPoolExecutor(2) as pool:
        start: Future[Any] = pool.submit(s.start, "actor", **SMALL)
        wait_for(cluster.jobs, 30, "job")
        close = pool.submit(s.close)
        wait_for(lambda: s.inspect().controller.ended, 10, "closing")
        assert not threading.Event().wait(0.3) and not close.done()
        gate.touch()
        close.result(timeout=60)
        assert cluster.jobs() == {}
        with pytest.raises(WorkerCreationError, match="closed meanwhile"):
            start.result(timeout=60)


def test_a_role_that_waits_in_the_queue_when_the_scheduler_is_closed_leaves_it(
    make: Make, cluster: SlurmCluster
) -> None:
    """Only jobs of others are in the queue after the close."""
    blocker = cluster.blocker("--nodes=2", "--ntasks-per-node=1", "--gres=gpu:4", "--mem=1G")
    s = make()
    with ThreadPoolExecutor(1) as pool:
        start: Future[Any] = pool.submit(s.start, "actor", gpu=1, **SMALL)
        wait_for(lambda: len(cluster.jobs()) == 2, 30, "job")
        s.close()
        assert list(cluster.jobs()) == [blocker]
        with pytest.raises(WorkerCreationError, match="closed meanwhile"):
            start.result(timeout=60)
    cluster.ask("scancel", blocker)


@pytest.mark.parametrize("limit", [float("nan"), -1, "5", True])
def test_a_limit_on_waiting_is_a_number_of_seconds(make: Make, limit: Any) -> None:
    """A `queue_timeout` that is no positive number is refused."""
    with pytest.raises(WorkerConfigurationError, match="bad queue_timeout"):
        make(queue_timeout=limit)
