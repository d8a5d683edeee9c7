"""A run on a cluster opens no more than it must, to nobody else, and its token is nowhere that others may look."""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rolecall import Scheduler
from rolecall.errors import EngineCallError, WorkerCreationError
from rolecall.transport import address
from tests.security.cluster_run import ClusterRun, cluster_run, files_that_hold, processes_that_show, with_actors
from tests.security.live_run import mode
from tests.support import sample_engines
from tests.support.attacker import SENTENCE, exchange, frames_in, guard_hello, send_http
from tests.support.ray_cluster import SharedRay
from tests.support.schedulers_under_test import each, make_scheduler
from tests.support.slurm_cluster import SlurmCluster
from tests.support.worker_processes import processes


@pytest.fixture(scope="module", params=each(["slurm", "ray"]))
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def cluster(request: pytest.FixtureRequest, facts: Any) -> SlurmCluster | SharedRay:
    found: SlurmCluster | SharedRay = request.getfixturevalue(facts.cluster)
    return found


@pytest.fixture(scope="module")
def lasting(kept: Scheduler) -> ClusterRun:
    return with_actors(kept)


@pytest.fixture
def run(lasting: ClusterRun) -> Iterator[ClusterRun]:
    """One run for all tests that end nothing of it; what they start beside its actors is deleted."""
    yield lasting
    for role in [role.name for role in lasting.scheduler.inspect().roles if role.name != lasting.actor.name]:
        lasting.scheduler.delete_workers(role)


def test_each_listener_is_bound_to_the_address_that_it_was_given(run: ClusterRun) -> None:
    """One for the controller and one for each worker, at their hosts' own addresses and no others; guards have none."""
    controller = address.parse(run.controller)
    workers = {f"rc:{name}": address.parse(where) for name, where in run.workers.items()}
    expected = {name: {(where.host, where.port)} for name, where in {"controller": controller, **workers}.items()}
    assert {name: where for name, where in run.bound().items() if where} == expected
    assert not {where.host for where in (controller, *workers.values())} & {"", "0.0.0.0", "::"}


def test_another_address_of_the_same_host_reaches_nothing(make: Callable[..., Scheduler], cluster: object) -> None:
    """The controller listens where it was told to, and says so."""
    with make(ip="127.0.0.2") as s:
        s.start("actor", cpu=1, mem=1)
        where = address.parse(s.inspect().controller.addresses[1])
        assert where.host == "127.0.0.2"
        for other in ("127.0.0.1", "127.0.0.3", "::1"):
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection((other, where.port), 5)


def test_no_listener_answers_who_has_not_the_runs_token(
    run: ClusterRun, make: Callable[..., Scheduler], cluster: object
) -> None:
    """None, a wrong one and that of another run on the same cluster: 401, and a refusal to frames, and then nothing."""
    with cluster_run(make, "other") as other:
        for name, where in run.listeners.items():
            for token in (None, "wrong", run.token[:-1], other.token):
                for path in ("/health", "/call", "/data/batch"):
                    answer = send_http(where, "POST", path, {}, token=token)
                    assert (answer.status, SENTENCE in answer.json["error"]) == (401, True), (name, path, token)
            for guard_id in ("controller", "g1-0", "actor/0"):
                (refusal,) = frames_in(exchange(where, guard_hello(other.token, guard_id, run.scheduler.run_id)))
                assert refusal[:2] == [2, "token"], (name, guard_id)
        for guard_id, run_id in (("g1-0", other.scheduler.run_id), ("g9-0", run.scheduler.run_id)):
            assert frames_in(exchange(run.controller, guard_hello(run.token, guard_id, run_id)))[0][0] == 2
    assert run.actor.call("greet") == ["hello"] * 2


def test_a_foreign_host_or_origin_is_forbidden_in_the_cluster_too(run: ClusterRun) -> None:
    """403 with the right token; the address it listens on is its own name."""
    for name, where in run.listeners.items():
        for headers in ({"Host": "evil.example"}, {"Host": "10.9.8.7"}, {"Origin": "http://evil.example"}):
            assert send_http(where, "GET", "/health", token=run.token, headers=headers).status == 403, (name, headers)
        parsed = address.parse(where)
        own = {"Host": f"{parsed.host}:{parsed.port}"}
        assert send_http(where, "GET", "/health", token=run.token, headers=own).status != 403, name


def test_no_process_and_no_file_that_others_may_read_shows_the_token(
    run: ClusterRun, cluster: SlurmCluster | SharedRay, tmp_path: Path
) -> None:
    """Not of the run, not of the manager's daemons, also after forks, programs and failures."""
    run.actor.fork("child")
    run.actor.fork("program", command=["sleep", "3600"])
    with pytest.raises(EngineCallError):
        run.actor.call("fail", "no luck")
    with pytest.raises(WorkerCreationError) as failed:
        run.scheduler.start("broken", cpu=1, mem=1, cmd=["sh", "-c", "env; exit 1"], ready={"log": "never printed"})
    assert run.token not in str(failed.value)
    assert processes_that_show(run.token) == []
    folder = cluster.folder if isinstance(cluster, SlurmCluster) else cluster.nodes.folder
    found = files_that_hold(run.token, run.run_dir, run.runtime_dir, folder, tmp_path)
    # Slurm keeps the script that it was given, on its controller and on the first node, for the user alone.
    keeps = {"script": 0o700, "slurm_script": 0o700} if isinstance(cluster, SlurmCluster) else {}
    assert found == {"token": 0o600, **keeps}
    assert mode(run.runtime_dir) == 0o700


def test_nothing_of_a_run_stays_that_holds_its_token(
    make: Callable[..., Scheduler], cluster: SlurmCluster | SharedRay, tmp_path: Path
) -> None:
    """After a run no file and no process holds its token."""
    with cluster_run(make) as run:
        token, runtime_dir = run.token, run.runtime_dir
    folder = cluster.folder if isinstance(cluster, SlurmCluster) else cluster.nodes.folder
    found = files_that_hold(token, tmp_path, runtime_dir, folder)
    # slurmctld forgets a script with its job, when MinJobAge has passed.
    assert found == ({"script": 0o700} if isinstance(cluster, SlurmCluster) else {})
    assert processes_that_show(token) == []


def test_the_environment_of_workers_and_programs_tells_no_secret(run: ClusterRun) -> None:
    """What an engine, or whatever it starts, can see of its own environment."""
    assert run.token not in json.dumps(run.actor.call("environment", *os.environ))
    for pid in processes(run.scheduler.run_id):
        assert run.token.encode() not in Path(f"/proc/{pid}/environ").read_bytes()


def test_what_is_hostile_to_a_shell_arrives_as_it_is(
    backend: str, cluster: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Folders, variables and arguments with quotes, substitutions and lines of a batch script's own."""
    nasty = "a'b\"c $(touch owned) `touch owned`\n#SBATCH --comment=owned\n; touch owned"
    here = tmp_path / nasty.replace("/", "")
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.syspath_prepend(str(here))
    with make_scheduler(backend, fileroot=here / "root") as s:
        role = s.start("actor", cpu=1, mem=1, env_vars={"NASTY": nasty})
        role.create_engine(sample_engines.Echo)
        assert role.call("environment", "NASTY") == [{"NASTY": nasty}]
        lines = ("import os, sys, time", "print(repr(sys.argv[1]))", "print(repr(os.getcwd()))", "time.sleep(60)")
        program = [sys.executable, "-uc", "\n".join(lines), nasty]
        role.fork("program", command=program, ready={"log": "pytest-of"})
        log = (Path(s.run_dir) / "logs" / "program-0.log").read_text()
        assert log.splitlines()[:2] == [repr(nasty), repr(str(here))]
        if isinstance(cluster, SlurmCluster):
            assert f"rolecall/{s.run_id}" in cluster.ask("squeue", "--noheader", "--format=%k")
    assert list(tmp_path.rglob("owned")) == []


def test_an_experiment_or_role_is_no_place_for_options(make: Callable[..., Scheduler], cluster: object) -> None:
    """Names that a batch script or a shell could take for something else are refused."""
    for name in ("a\n#SBATCH --uid=0", "a b", "a;b", "$(id)", "-x", "a/b", ""):
        with pytest.raises(Exception, match="bad experiment name"):
            make(experiment=name)
    s = make()
    for name in ("a\n#SBATCH --uid=0", "a b", "$(id)", "-x", "a/b"):
        with pytest.raises(Exception, match="bad role name"):
            s.start(name, cpu=1, mem=1)
