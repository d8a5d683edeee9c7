"""What Slurm and Ray themselves know of a run, and whom they tell it."""

from __future__ import annotations

import json
import os
import pwd
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rolecall import Scheduler, SchedulingSpec
from rolecall.errors import WorkerConfigurationError
from tests.security.cluster_run import cluster_run
from tests.security.live_run import mode
from tests.support.ray_cluster import SharedRay
from tests.support.schedulers_under_test import each, make_scheduler
from tests.support.slurm_cluster import SlurmCluster

INJECTIONS = ("n1\n#SBATCH --uid=0", "n1 --wrap=x", "--uid=0", "n1'", 'n1"', "n1\\", "n1#", "n1\0", "\u00a0n1", "")


@pytest.fixture
def on_slurm(slurm_cluster: SlurmCluster, tmp_path: Path) -> Callable[..., Scheduler]:
    return lambda **options: make_scheduler("slurm", fileroot=tmp_path, **options)


def test_slurm_shows_nobody_the_token(on_slurm: Callable[..., Scheduler], slurm_cluster: SlurmCluster) -> None:
    """Not in the job, its steps and its nodes, in any form that its commands have; its user can read the script."""
    with cluster_run(on_slurm) as run:
        (job,) = slurm_cluster.jobs()
        for command in (
            f"scontrol -dd show job {job}",
            "scontrol -d show step",
            "scontrol -d show node",
            "scontrol show assoc_mgr",
            "squeue --Format=all",
            "squeue --format=%all",
            "squeue --json",
            "squeue --steps --format=%all",
            "sinfo --format=%all",
        ):
            told = slurm_cluster.ask(*command.split())
            assert told and not any(run.token in line for line in told), command
        script = slurm_cluster.ask("scontrol", "write", "batch_script", job, "-")
        assert any(run.token in line for line in script)  # what makes the refusal below worth something


def test_slurm_gives_the_script_to_no_other_user(
    on_slurm: Callable[..., Scheduler], slurm_cluster: SlurmCluster
) -> None:
    """Another user cannot read the job's script, which holds the token."""
    with cluster_run(on_slurm) as run:
        (job,) = slurm_cluster.jobs()
        nobody = pwd.getpwnam("nobody")
        asked = subprocess.run(
            ["scontrol", "write", "batch_script", job, "-"],
            user=nobody.pw_uid,
            group=nobody.pw_gid,
            extra_groups=[],
            env=os.environ | slurm_cluster.exports,
            capture_output=True,
            text=True,
            timeout=30,
        )
        assert run.token not in asked.stdout + asked.stderr and "Invalid user id" in asked.stdout + asked.stderr


def test_what_slurm_logs_of_a_job_is_not_for_others(
    on_slurm: Callable[..., Scheduler], slurm_cluster: SlurmCluster
) -> None:
    """The script's output and that of srun, where a guard that fails tells what it was doing."""
    with cluster_run(on_slurm) as run:
        (path,) = (run.run_dir / "logs").glob("slurm-*.out")
        assert mode(path) == 0o600


@pytest.mark.parametrize("field", ["nodelist", "exclude", "partition", "account", "qos", "constraint", "reservation"])
def test_no_option_of_a_job_adds_a_line_to_its_script(
    field: str, on_slurm: Callable[..., Scheduler], slurm_cluster: SlurmCluster
) -> None:
    """Refused where it is said; nothing is submitted."""
    for value in INJECTIONS:
        with pytest.raises(WorkerConfigurationError, match=f"bad {field}"):
            on_slurm(**{field: value})
    if field in SchedulingSpec.__dataclass_fields__:
        with on_slurm() as s:
            for value in INJECTIONS:
                spec: dict[str, Any] = {field: value}
                with pytest.raises(WorkerConfigurationError, match=f"bad {field}"):
                    s.start("actor", cpu=1, mem=1, **spec)
    assert slurm_cluster.jobs() == {}


def test_what_no_option_of_srun_may_hold_is_refused(
    on_slurm: Callable[..., Scheduler], slurm_cluster: SlurmCluster
) -> None:
    """Options that would add lines to the script or reach a shell are refused, and nothing is submitted."""
    with on_slurm() as s:
        refused: list[tuple[str, Any]] = [
            ("srun_additional_args", ["--chdir=/\n#SBATCH --uid=0"]),
            ("srun_additional_args", "$(touch owned)"),
            ("srun_additional_args", "; touch owned"),
            ("image", "x.sif\n#SBATCH --uid=0"),
            ("image", "--writable"),
            ("mount", "a:b\ntouch owned"),
        ]
        for field, value in refused:
            with pytest.raises(WorkerConfigurationError, match=f"{field}"):
                s.start("actor", cpu=1, mem=1, **{field: value})
    assert slurm_cluster.jobs() == {}


ALL_THAT_THE_HEAD_KNOWS = """
import json, ray, sys
from ray._private.state import state
from ray.experimental.internal_kv import _internal_kv_get, _internal_kv_list
ray.init(address="auto", namespace="stranger", log_to_driver=False)
tables = [state.actor_table(None), state.job_table(), state.node_table(), state.placement_group_table()]
print(json.dumps(tables, default=str))
for space in (None, b"fun", b"job", b"session", b"dashboard", b"tracing", b"usage_stats", b"cluster", b"autoscaler"):
    for key in _internal_kv_list(b"", namespace=space):
        print(space, key, _internal_kv_get(key, namespace=space))
"""


@pytest.mark.parametrize("backend", each(["ray"]))
def test_ray_shows_no_other_driver_the_token(backend: str, ray_cluster: SharedRay, tmp_path: Path) -> None:
    """Not in its tables, nor in its key-value store, where the actors' code is."""
    with cluster_run(lambda **options: make_scheduler(backend, fileroot=tmp_path, **options)) as run:
        env = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | ray_cluster.exports
        known = subprocess.run(
            [sys.executable, "-c", ALL_THAT_THE_HEAD_KNOWS], env=env, capture_output=True, text=True, timeout=120
        )
        assert known.returncode == 0, known.stderr
        assert f"rolecall/{run.scheduler.run_id}/actor/0" in known.stdout and "placement.ray.guard" in known.stdout
        assert run.token not in known.stdout
        assert run.token not in json.dumps(ray_cluster.census.take())
