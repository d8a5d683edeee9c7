"""Roles on a real Slurm cluster: where their workers are, what they get, and what Slurm knows of them afterwards."""

from __future__ import annotations

import os
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rolecall import Job, Role, SchedulingSpec, SlurmScheduler
from rolecall.errors import GPUAllocationError, SlurmError, WorkerConfigurationError, WorkerNotFoundError
from tests.support import live, sample_engines
from tests.support.checkout import PYTHONPATH, SOURCES
from tests.support.slurm_cluster import SlurmCluster
from tests.support.waiting import wait_for

Echo = sample_engines.Echo
Make = Callable[..., SlurmScheduler]
SMALL: dict[str, Any] = {"cpu": 1, "mem": 1}
SERVER = [sys.executable, "-u", "-m", "http.server", "--bind", "{host}", "{port}"]
APPTAINER = """#!/bin/bash
printf '%s\\n' "$@" >"$APPTAINER_SEEN"
while [[ $1 != *.sif ]]; do shift; done
shift
exec "$@"
"""


def devices(role: Role) -> list[str]:
    return [seen["CUDA_VISIBLE_DEVICES"] for seen in role.call("environment", "CUDA_VISIBLE_DEVICES")]


def nodes_of(s: SlurmScheduler, role: str) -> list[str]:
    """The Slurm node of each worker of a role."""
    workers = [s.inspect().worker(worker.id) for worker in s.get_workers(role)]
    found = []
    for member in workers:
        env = (Path("/proc") / str(member.pid) / "environ").read_bytes().split(b"\0")
        found.append(next(item for item in env if item.startswith(b"SLURMD_NODENAME=")).decode().partition("=")[2])
    return found


def test_a_role_is_a_job_while_it_lives(s: SlurmScheduler, cluster: SlurmCluster) -> None:
    """A role's job is in the queue from its start to its deletion."""
    role = s.start("actor", replicas=2, gpu=1, **SMALL)
    role.create_engine(Echo)
    assert role.call("greet") == ["hello", "hello"]
    assert list(cluster.jobs().values()) == ["rolecall-slurm-actor RUNNING"]
    s.delete_workers("actor")
    assert cluster.jobs() == {}
    with pytest.raises(WorkerNotFoundError):
        s.get_workers("actor")


def test_a_job_that_was_given_back_has_completed_and_was_not_cancelled(
    s: SlurmScheduler, cluster: SlurmCluster
) -> None:
    """A deleted role's job ends as COMPLETED."""
    s.start("actor", **SMALL)
    (job,) = cluster.jobs()
    s.delete_workers("actor")
    cluster.wait_for(job, "COMPLETED")


def test_forks_live_in_the_job_of_their_target(s: SlurmScheduler, cluster: SlurmCluster) -> None:
    """With a command and without: the same node, the same devices, no job of their own."""
    actors = s.start("actor", replicas=2, gpu=2, **SMALL)
    actors.create_engine(Echo)
    ref = actors.fork("ref")
    ref.create_engine(Echo)
    servers = actors.fork("server", command=SERVER, ready="tcp")
    assert devices(ref) == devices(actors) == ["0,1", "2,3"]
    for worker in s.get_workers("server"):
        with urllib.request.urlopen(f"http://{worker.ip}:{worker.worker_ports[0]}/", timeout=10) as answer:
            assert answer.status == 200
    assert len(cluster.jobs()) == 1
    s.delete_workers(servers.name)
    s.delete_workers("ref")
    assert actors.call("greet") == ["hello", "hello"]


def test_a_command_worker_is_a_program_of_the_job(s: SlurmScheduler) -> None:
    """A worker with a command serves at its leased port on its node."""
    role = s.start("server", cmd=SERVER, ready="tcp", **SMALL)
    (worker,) = s.get_workers(role.name)
    with urllib.request.urlopen(f"http://{worker.ip}:{worker.worker_ports[0]}/", timeout=10) as answer:
        assert answer.status == 200


def test_two_roles_share_a_node_and_no_device(s: SlurmScheduler) -> None:
    """Roles on one node see different devices."""
    first = s.start("first", replicas=2, gpu=1, nodelist="n1", **SMALL)
    second = s.start("second", gpu=2, nodelist="n1", **SMALL)
    for role in (first, second):
        role.create_engine(Echo)
    assert nodes_of(s, "first") + nodes_of(s, "second") == ["n1"] * 3
    assert devices(first) + devices(second) == ["0", "1", "2,3"]


def test_workers_spread_over_nodes_when_one_is_too_small(s: SlurmScheduler) -> None:
    """A role larger than a node is placed on two, each worker with its own devices."""
    role = s.start("wide", replicas=3, gpu=2, **SMALL)
    role.create_engine(Echo)
    assert nodes_of(s, "wide") == ["n1", "n1", "n2"]
    assert devices(role) == ["0,1", "2,3", "0,1"]


def test_unequal_specs_each_get_what_they_ask_for(s: SlurmScheduler) -> None:
    """Workers of one role may differ in devices and environment."""
    tasks = [SchedulingSpec(gpu=n, env_vars={"MINE": str(n)}, **SMALL) for n in (3, 0, 1, 4)]
    role = s.start("mixed", replicas=4, tasks=tasks)
    role.create_engine(Echo)
    assert devices(role) == ["0,1,2", "", "3", "0,1,2,3"]
    assert [seen["MINE"] for seen in role.call("environment", "MINE")] == ["3", "0", "1", "4"]


def test_named_nodes_are_used_each_and_no_others(s: SlurmScheduler) -> None:
    """`nodelist` and `exclude` decide where workers are."""
    s.start("spread", replicas=3, nodelist="n[1-2]", **SMALL)
    assert set(nodes_of(s, "spread")) == {"n1", "n2"}
    s.start("there", exclude="n1", **SMALL)
    assert nodes_of(s, "there") == ["n2"]


def test_what_no_node_has_is_refused_before_anything_is_submitted(s: SlurmScheduler, cluster: SlurmCluster) -> None:
    """A spec that fits no node fails with what the nodes have."""
    with pytest.raises(GPUAllocationError, match=r"5 device\(s\) wanted, 4 free; big/0 needs more; Slurm lists 2 node"):
        s.start("big", gpu=5, **SMALL)
    with pytest.raises(WorkerConfigurationError, match="big/0 needs a node with 1000 CPU"):
        s.start("big", cpu=1000)
    assert cluster.jobs() == {}


def test_a_plan_is_the_script_without_the_token_and_submits_nothing(s: SlurmScheduler, cluster: SlurmCluster) -> None:
    """`plan` shows the batch script, is repeatable, and leaves the queue empty."""
    job = Job("actor", 2, [SchedulingSpec(gpu=4, **SMALL)])
    plan = s.plan(job)
    assert plan.guards == (0, 1)
    assert "#SBATCH --nodes=2\n" in plan.script and "#SBATCH --gres=gpu:4\n" in plan.script
    assert live.token(s) not in str(plan)
    assert s.plan(job) == plan
    assert cluster.jobs() == {}


def test_the_token_is_in_no_argument_and_no_environment(s: SlurmScheduler) -> None:
    """No process on the machine shows the token in its command line or environment, nor does a file of the run."""
    s.start("actor", replicas=5, gpu=1, **SMALL)
    token = live.token(s).encode()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            for name in ("cmdline", "environ"):
                try:
                    assert token not in (entry / name).read_bytes(), f"{entry}/{name}"
                except OSError:
                    continue
    assert not any(token in path.read_bytes() for path in Path(s.run_dir).rglob("*") if path.is_file())


def test_the_users_environment_and_lines_of_shell_reach_all_nodes(
    make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Workers on all nodes see the controller's variables and those that the script exports."""
    monkeypatch.setenv("FROM_CONTROLLER", "it's $HOME")
    s = make(additional_bash_cmds=["export FROM_SCRIPT='a b'", f"echo ran on $SLURMD_NODENAME >>{tmp_path}/ran"])
    role = s.start("wide", replicas=2, gpu=4, **SMALL)
    role.create_engine(Echo)
    seen = role.call("environment", "FROM_CONTROLLER", "FROM_SCRIPT")
    assert seen == [{"FROM_CONTROLLER": "it's $HOME", "FROM_SCRIPT": "a b"}] * 2
    assert (tmp_path / "ran").read_text() == "ran on n1\n"


def test_hostile_folders_are_folders_like_any_other(
    make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Quotes, blanks, newlines and substitutions in the current folder and in the run directory."""
    nasty = tmp_path / 'it\'s "x" $(touch owned) `touch owned`\n#SBATCH --job-name=stolen\n;touch owned #'
    nasty.mkdir()
    monkeypatch.chdir(nasty)
    s = make(fileroot=nasty / "root")
    role = s.start("actor", **SMALL)
    role.create_engine(Echo)
    assert role.call("greet") == ["hello"]
    assert [path.name for path in Path(s.run_dir, "logs").glob("slurm-*.out")] != []
    assert not list(tmp_path.rglob("owned"))


def test_a_container_holds_the_guard_and_all_below_it(
    make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """There is no apptainer here: a program of its name shows how it was called and runs what it was given."""
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "apptainer").write_text(APPTAINER)
    (tools / "apptainer").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    monkeypatch.setenv("APPTAINER_SEEN", str(tmp_path / "seen"))
    s = make(python=sys.executable)
    role = s.start("actor", gpu=1, image="/images/it's mine.sif", mount="/data:/data:ro", **SMALL)
    role.create_engine(Echo)
    assert role.call("greet") == ["hello"]
    seen = (tmp_path / "seen").read_text().splitlines()
    assert seen[:5] == ["exec", "--nv", f"--bind={s.run_dir}", "--bind=/data:/data:ro", "/images/it's mine.sif"]


def test_a_controller_inside_an_allocation_starts_jobs_of_its_own(cluster: SlurmCluster, tmp_path: Path) -> None:
    """It is a task of a job with one device on n1; its workers get others, and none of its variables."""
    program = tmp_path / "inside.py"
    program.write_text(
        "import sys, rolecall\nfrom tests.support import sample_engines\n"
        "if __name__ == '__main__':\n"
        "    with rolecall.scheduler('slurm', fileroot=sys.argv[1], preload=[]) as s:\n"
        "        role = s.start('actor', replicas=3, gpu=1, nodelist='n1', cpu=1, mem=1)\n"
        "        role.create_engine(sample_engines.Echo)\n"
        "        names = ('CUDA_VISIBLE_DEVICES', 'SLURM_JOB_NUM_NODES', 'SLURM_JOB_NAME')\n"
        "        print(role.call('environment', *names))\n"
    )
    command = ["srun", "--quiet", "--gres=gpu:1", "--nodelist=n1", "--ntasks=1", "--mem=1G", "--job-name=outer"]
    done = subprocess.run(
        [*command, sys.executable, program, tmp_path / "root"],
        env={**os.environ, "PYTHONPATH": PYTHONPATH}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    seen = [("CUDA_VISIBLE_DEVICES", str(n)) for n in (1, 2, 3)]
    expected = [{**dict([one]), "SLURM_JOB_NUM_NODES": "1", "SLURM_JOB_NAME": "rolecall-default-actor"} for one in seen]
    assert done.stdout.strip() == str(expected)


def test_a_partition_that_is_not_there_is_refused_by_name(cluster: SlurmCluster, make: Make) -> None:
    """The error says how to list the partitions."""
    with pytest.raises(WorkerConfigurationError, match=r"no node in the partition: 'nosuch'; .*`sinfo` lists them"):
        make(partition="nosuch")


def test_a_host_without_slurm_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Making a SlurmScheduler without Slurm's programs fails with that reason."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SlurmError, match="no such program; is Slurm installed on this host"):
        SlurmScheduler(fileroot=tmp_path, preload=[])


def test_a_controller_that_is_killed_leaves_no_job(cluster: SlurmCluster, tmp_path: Path) -> None:
    """The job of a killed controller leaves the queue by itself."""
    program = tmp_path / "victim.py"
    program.write_text(
        "import os, signal, sys, rolecall\n"
        "if __name__ == '__main__':\n"
        "    with rolecall.scheduler('slurm', fileroot=sys.argv[1], preload=[], lease_s=4) as s:\n"
        "        s.start('actor', replicas=2, gpu=4, cpu=1, mem=1)\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    env = {**os.environ, "PYTHONPATH": str(SOURCES)}
    done = subprocess.run([sys.executable, program, tmp_path], env=env, capture_output=True, timeout=120)
    assert done.returncode == -9
    wait_for(lambda: not cluster.jobs(), 30, "empty queue")
