"""Slurm's commands: how they are run, how often, and what is made of answers that are late, broken or none."""

from __future__ import annotations

from pathlib import Path

import pytest

from rolecall.errors import SlurmError
from rolecall.placement.slurm.commands import Slurm
from rolecall.placement.slurm.packing import Node, Share
from rolecall.placement.slurm.states import JobState
from tests.placement.slurm.fake_slurm import ANSWERS, FakeSlurm


@pytest.fixture
def fake(tmp_path: Path) -> FakeSlurm:
    return FakeSlurm(tmp_path / "bin")


def test_a_script_goes_by_standard_input_and_in_no_argument(fake: FakeSlurm) -> None:
    """sbatch reads the script, which holds the token, from its standard input."""
    script = "#!/bin/bash\n# it holds a token\n"
    assert Slurm(fake.environment).submit(script) == "7"
    assert fake.calls("sbatch") == [["--parsable"]]
    assert fake.input_of("sbatch") == script


def test_the_job_of_a_named_cluster_is_known_by_its_number(fake: FakeSlurm) -> None:
    """The cluster's name after the job id is cut off."""
    fake.says("sbatch", "12;alpha\n")
    assert Slurm(fake.environment).submit("") == "12"


def test_variables_of_an_outer_allocation_stay_out(fake: FakeSlurm) -> None:
    """A controller inside an allocation asks for jobs of their own, and gives them none of its own devices."""
    outer = {"SLURM_JOB_ID": "3", "SLURM_MEM_PER_NODE": "100", "SBATCH_PARTITION": "x", "SRUN_CPUS_PER_TASK": "1"}
    outer |= {"SQUEUE_FORMAT": "%i", "SINFO_FORMAT": "%n", "SCANCEL_INTERACTIVE": "1", "CUDA_VISIBLE_DEVICES": "0"}
    kept = {"SLURM_CONF": "/etc/slurm/slurm.conf", "SLURM_JWT": "jwt", "MINE": "1", "SLURMPHASE": "2"}
    slurm = Slurm(fake.environment | outer | kept)
    slurm.submit("")
    seen = fake.environment_of("sbatch")
    assert not outer.keys() & seen.keys()
    assert {name: seen[name] for name in kept} == kept


def test_the_job_keeps_the_users_language_and_the_questions_do_not(fake: FakeSlurm) -> None:
    """sbatch runs in the user's locale, questions whose answers are parsed in the C locale."""
    slurm = Slurm(fake.environment | {"LC_ALL": "de_DE.UTF-8"})
    slurm.submit("")
    slurm.jobs()
    assert fake.environment_of("sbatch")["LC_ALL"] == "de_DE.UTF-8"
    assert fake.environment_of("squeue")["LC_ALL"] == "C"


def test_a_refusal_is_told_in_slurms_words_and_never_asked_again(fake: FakeSlurm) -> None:
    """A refused sbatch is not repeated, and its message is in the error."""
    fake.says("sbatch", errors="sbatch: error: Batch job submission failed: Invalid qos specification\n", code=1)
    with pytest.raises(SlurmError, match=r"`sbatch --parsable`: exit code 1: .*Invalid qos specification"):
        Slurm(fake.environment).submit("")
    assert len(fake.calls("sbatch")) == 1


@pytest.mark.parametrize("answer", ["", "Submitted batch job 7\n", "7\n8\n", "-1\n"])
def test_an_answer_that_is_no_job_is_an_error(fake: FakeSlurm, answer: str) -> None:
    """Output of sbatch that is no job id is refused."""
    fake.says("sbatch", answer)
    with pytest.raises(SlurmError, match="an answer that cannot be read"):
        Slurm(fake.environment).submit("")


def test_a_question_is_asked_again_until_slurmctld_answers(fake: FakeSlurm) -> None:
    """It restarts, or is busy: the third time it answers."""
    fake.does(
        "sinfo",
        f"[[ $(wc -l <{fake.folder}/sinfo.calls) -ge 3 ]] || {{ echo 'slurmctld is down' >&2; exit 1; }}\n"
        "echo 'n1|main*|64|262144|10.0.0.1|gpu:4'",
    )
    assert Slurm(fake.environment).nodes(None, "gpu") == [Node("n1", "10.0.0.1", Share(64, 262144, 4))]
    assert len(fake.calls("sinfo")) == 3


def test_a_slurmctld_that_never_answers_is_given_up(fake: FakeSlurm) -> None:
    """A command that hangs fails after its time limit, with what to check."""
    fake.says("squeue", after_s=60)
    with pytest.raises(SlurmError, match=r"no answer within 0.3 s; does `scontrol ping` show slurmctld as UP\?"):
        Slurm(fake.environment).jobs(0.3)


def test_a_slurm_that_is_slow_or_away_is_told(fake: FakeSlurm, capsys: pytest.CaptureFixture[str]) -> None:
    """A line says what is waited for; the error says what to look at."""
    fake.says("sinfo", ANSWERS["sinfo"], after_s=2.5)
    assert len(Slurm(fake.environment).nodes(None, "gpu")) == 1
    assert "waiting for Slurm's answer (`sinfo`) ..." in capsys.readouterr().err
    fake.says("squeue", errors="Unable to contact slurm controller", code=1)
    with pytest.raises(SlurmError, match=r"Unable to contact slurm controller; does `scontrol ping` show"):
        Slurm(fake.environment).left(within_s=0.0)


def test_a_host_without_slurm_is_told_at_once(tmp_path: Path) -> None:
    """A missing program fails with that reason."""
    with pytest.raises(SlurmError, match=r"`sinfo .*`: no such program; is Slurm installed on this host"):
        Slurm({"PATH": str(tmp_path)}).nodes(None, "gpu")


def test_jobs_are_known_by_their_numbers(fake: FakeSlurm) -> None:
    """squeue's lines are parsed into states by job id."""
    slurm = Slurm(fake.environment)
    fake.says("squeue", "7|RUNNING|2026-11-21T05:00:00|None\n70|CANCELLED by 0|N/A|None\n")
    running, cancelled = JobState("RUNNING", "None", "2026-11-21T05:00:00"), JobState("CANCELLED by 0", "None", "N/A")
    assert slurm.jobs() == {"7": running, "70": cancelled}
    fake.says("squeue", "")
    assert slurm.jobs() == {}


def test_a_reason_may_hold_anything(fake: FakeSlurm) -> None:
    """A reason with separators in it is parsed as the rest of the line."""
    reason = "ReqNodeNotAvail, UnavailableNodes:n[1-2] | (see 7|RUNNING|N/A|None)"
    fake.says("squeue", f"7|PENDING|N/A|{reason}\n")
    assert Slurm(fake.environment).jobs() == {"7": JobState("PENDING", reason, "N/A")}


@pytest.mark.parametrize("answer", ["7|RUNNING\n", "slurm_load_jobs: something new\n", "{}\n"])
def test_lines_that_are_no_jobs_are_an_error_and_no_guess(fake: FakeSlurm, answer: str) -> None:
    """Output of squeue that cannot be parsed is refused."""
    fake.says("squeue", answer)
    with pytest.raises(SlurmError, match="an answer that cannot be read"):
        Slurm(fake.environment).jobs()


@pytest.mark.parametrize(
    ("resources", "gres", "count"),
    [
        ("gpu:4", "gpu", 4),
        ("gpu:a100:4(S:0-1)", "gpu", 4),
        ("gpu:a100:4(S:0,2),gpu:v100:2,shard:gpu:8", "gpu", 6),
        ("gpu:a100:4(S:0,2),gpu:v100:2", "gpu:v100", 2),
        ("npu:8", "gpu", 0),
        ("npu:8", "npu", 8),
        ("(null)", "gpu", 0),
    ],
)
def test_devices_are_counted_by_name_and_type(fake: FakeSlurm, resources: str, gres: str, count: int) -> None:
    """A node's GRES are counted for the name and type that is asked for."""
    fake.says("sinfo", f"n1|main*|64|262144|n1|{resources}\n")
    (node,) = Slurm(fake.environment).nodes(None, gres)
    assert node.share.gpus == count


def test_nodes_are_those_of_the_default_partition_each_once(fake: FakeSlurm) -> None:
    """Memory of 1 MiB is what Slurm says when nobody told it how much there is."""
    fake.says("sinfo", "n1|main*|64|1|n1|(null)\nn1|long|64|1|n1|(null)\nn2|long|64|1|n2|(null)\n")
    slurm = Slurm(fake.environment)
    assert slurm.nodes(None, "gpu") == [Node("n1", "n1", Share(64, 0, 0))]
    assert [node.name for node in slurm.nodes("main,long", "gpu")] == ["n1", "n2"]
    assert "--partition=main,long" in fake.calls("sinfo")[-1]


def test_a_node_without_numbers_is_an_error(fake: FakeSlurm) -> None:
    """Output of sinfo that cannot be parsed is refused."""
    fake.says("sinfo", "n1|main*|many|262144|n1|(null)\n")
    with pytest.raises(SlurmError, match="an answer that cannot be read"):
        Slurm(fake.environment).nodes(None, "gpu")


def test_the_jobs_of_a_run_are_known_by_their_comments(fake: FakeSlurm) -> None:
    """In whatever state they are, as long as they have not ended; and whatever else is in the queue."""
    mine = ["7|PENDING", "8|CONFIGURING", "9|RUNNING", "10|COMPLETED", "11|CANCELLED by 0", "12|SUSPENDED"]
    others = ["70|RUNNING|rolecall-a-b|rolecall/4567", "71|RUNNING|x|several\nlines | of it\n|", "72|RUNNING|x|"]
    said = "13|RUNNING|rolecall-a-b|rolecall/0123: srun: error: n1: task 0: Killed"
    rows = [
        *(f"{job}|rolecall-a-b|rolecall/0123" for job in mine),
        *others,
        said,
        "14|PENDING|rolecall-a-c|rolecall/0123",
    ]
    fake.says("squeue", "\n".join(rows) + "\n")
    slurm = Slurm(fake.environment)
    assert slurm.of_run("rolecall/0123") == ["7", "8", "9", "12", "13", "14"]
    assert slurm.of_run("rolecall/0123", "rolecall-a-b") == ["7", "8", "9", "12", "13"]
    assert "--states=all" in fake.calls("squeue")[-1]


@pytest.mark.parametrize(
    ("comment", "preempted", "told"),
    [
        ("rolecall/0123: srun: error: x | y", "None", "srun: error: x | y"),
        ("rolecall/0123: srun: error: x", "2026-11-21T05:00:00", "preempted at 2026-11-21T05:00:00; srun: error: x"),
        ("rolecall/0123", "2026-11-21T05:00:00", "preempted at 2026-11-21T05:00:00"),
        ("rolecall/0123", "None", ""),
        ("", "None", ""),
        ("mine: not ours", "None", ""),
    ],
)
def test_what_is_known_beside_a_state_is_told(fake: FakeSlurm, comment: str, preempted: str, told: str) -> None:
    """The script's addition to its comment, and that the job was preempted."""
    times = f"PreemptEligibleTime=2026-11-21T04:00:00 PreemptTime={preempted}"
    fake.says("scontrol", f"JobId=7 JobName=x\n   JobState=FAILED\n   {times}\n   Comment={comment} \n   Power=\n")
    assert Slurm(fake.environment).end_details("7", "rolecall/0123") == told


def test_a_job_is_ended_and_then_killed_with_its_shell(fake: FakeSlurm) -> None:
    """Killing signals all of the job, its batch shell too."""
    slurm = Slurm(fake.environment)
    slurm.cancel("7")
    slurm.cancel("7", kill=True)
    assert fake.calls("scancel") == [["7"], ["--full", "--signal=KILL", "7"]]
