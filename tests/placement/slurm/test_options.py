"""Options of Slurm are checked where they are given; specs override them; the environment's defaults stand in."""

from __future__ import annotations

from typing import Any

import pytest

from rolecall import Job, SchedulingSpec
from rolecall.errors import WorkerConfigurationError
from rolecall.placement.slurm.options import SlurmOptions, with_defaults


@pytest.mark.parametrize(
    "options",
    [
        {"partition": "gpu long"},
        {"partition": "gpu\n#SBATCH --uid=0"},
        {"account": "lab#7"},
        {"qos": '"high"'},
        {"constraint": "a100\\"},
        {"nodelist": ""},
        {"nodelist": "--help"},
        {"exclude": "n1 n2"},
        {"reservation": "ä"},
        {"time": "soon"},
        {"time": True},
        {"time": -5},
        {"signal_s": 65536},
        {"signal_s": -1},
        {"n_gpus_per_node": -1},
        {"cpus_per_node": 1.5},
        {"gres": "gpu:4:x"},
        {"gres": "gpu 4"},
        {"gpu_request": "tres"},
        {"container_type": "docker"},
        {"image": "--writable"},
        {"mount": "a\nb"},
        {"python": ""},
        {"additional_bash_cmds": "module load cuda"},
        {"additional_bash_cmds": ["a\0b"]},
        {"srun_additional_args": "--chdir $PWD"},
        {"srun_additional_args": "`id`"},
        {"srun_additional_args": "'unclosed"},
        {"srun_additional_args": "hostname"},
        {"srun_additional_args": ["--mpi=none", "--", "hostname"]},
        {"srun_additional_args": "--ntasks=8"},
        {"srun_additional_args": "-n8"},
        {"srun_additional_args": "-N 2"},
        {"srun_additional_args": ["--input=none"]},
        {"srun_additional_args": ["--inp=none"]},
        {"srun_additional_args": ["a\nb"]},
    ],
)
def test_what_slurm_or_a_shell_would_take_for_something_else_is_refused(options: dict[str, Any]) -> None:
    """Option values are checked when they are given."""
    with pytest.raises(WorkerConfigurationError):
        SlurmOptions(**options)


@pytest.mark.parametrize("time", [30, "90", "1:30", "4:00:00", "2-0", "2-12:30", "1-0:0:5", "UNLIMITED", "infinite"])
def test_times_are_written_as_slurm_writes_them(time: str | int) -> None:
    """Minutes and Slurm's time formats are accepted."""
    assert SlurmOptions(time=time).time == time


def test_arguments_of_srun_are_split_as_a_shell_would() -> None:
    """Text is split with its quotes respected; a list is taken as it is."""
    assert SlurmOptions(srun_additional_args="--mpi=pmi2 -K --chdir '/a b'").srun_arguments() == (
        "--mpi=pmi2",
        "-K",
        "--chdir",
        "/a b",
    )
    assert SlurmOptions(srun_additional_args=["--chdir", "/a b"]).srun_arguments() == ("--chdir", "/a b")


def test_an_argument_that_waits_for_a_shell_says_that_there_is_none() -> None:
    """A shell variable among srun's arguments is refused with that reason."""
    with pytest.raises(WorkerConfigurationError, match=r"pass no shell: '\$PWD'; write the value itself"):
        SlurmOptions(srun_additional_args="--unbuffered --chdir $PWD")


def test_a_spec_overrides_the_schedulers_option() -> None:
    """A spec's values replace the scheduler's, and the rest stays."""
    general = SlurmOptions(nodelist="n[1-4]", image="general.sif", exclude="n9")
    spec = SchedulingSpec(nodelist="n1", image="own.sif", additional_bash_cmds=["ulimit -n 4096"])
    of_job = general.of(Job("actor", 2, [spec]))
    assert (of_job.nodelist, of_job.exclude, of_job.container) == ("n1", "n9", "own.sif")
    assert of_job.additional_bash_cmds == ["ulimit -n 4096"]


def test_a_spec_without_a_container_passes_the_schedulers_image_over() -> None:
    """`container_type="none"` means no container whatever the scheduler's image is."""
    of_job = SlurmOptions(image="general.sif").of(Job("actor", 1, [SchedulingSpec(container_type="none")]))
    assert of_job.container is None


def test_specs_that_differ_in_what_a_job_has_once_are_refused() -> None:
    """Specs of one role that need two jobs are refused, with the advice to make two roles."""
    tasks = [SchedulingSpec(image="a.sif"), SchedulingSpec(image="b.sif")]
    with pytest.raises(
        WorkerConfigurationError, match=r"role 'actor' differ in image: \['a.sif', 'b.sif'\]; .*two roles"
    ):
        SlurmOptions().of(Job("actor", 2, tasks))


def test_what_a_spec_says_is_checked_like_an_option() -> None:
    """A bad value in a spec is refused as it is on the scheduler."""
    with pytest.raises(WorkerConfigurationError, match="bad nodelist"):
        SlurmOptions().of(Job("actor", 1, [SchedulingSpec(nodelist="n1 n2")]))


def test_the_environments_defaults_stand_in_for_what_is_not_given() -> None:
    """Sites set them for everybody. Left in the environment they would win over the script, unseen."""
    site = {"SBATCH_PARTITION": "site", "SBATCH_ACCOUNT": "lab", "SBATCH_TIMELIMIT": "30", "SBATCH_QOS": ""}
    options: dict[str, Any] = {"partition": "mine", "qos": None}
    found = with_defaults(options, site)
    assert (found.partition, found.account, found.time, found.qos) == ("mine", "lab", "30", None)
    assert options == {"partition": "mine", "qos": None}
