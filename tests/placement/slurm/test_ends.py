"""Ends that Slurm brings about, or sees: each is a typed error with Slurm's state and reason, in time."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rolecall import PendingCall, Role, SlurmScheduler
from rolecall.errors import WorkerFailedError
from tests.placement.slurm.fake_slurm import FakeSlurm
from tests.support import sample_engines
from tests.support.slurm_cluster import SlurmCluster
from tests.support.waiting import wait_for
from tests.support.worker_processes import processes

Make = Callable[..., SlurmScheduler]
SMALL: dict[str, Any] = {"cpu": 1, "mem": 1}
KNOWN_WITHIN_S = 15.0
ALL_DEVICES = ("--nodes=2", "--ntasks-per-node=1", "--gres=gpu:4", "--mem=1G", "--output=/dev/null")


def job_of(cluster: SlurmCluster) -> str:
    (job,) = cluster.jobs()
    return job


def waiting_call(role: Role) -> Callable[[], WorkerFailedError]:
    """Begins a call that never answers; returns what waits for its error, which must come in time."""
    role.create_engine(sample_engines.Parent)
    call = role[0].submit("wait")
    return lambda: known_in_time(call)


def known_in_time(call: PendingCall[object]) -> WorkerFailedError:
    """How a call fails whose worker Slurm has just ended."""
    begun = time.monotonic()
    with pytest.raises(WorkerFailedError) as caught:
        call.result()
    assert time.monotonic() - begun < KNOWN_WITHIN_S
    return caught.value


def guards(s: SlurmScheduler) -> list[int]:
    return [guard.pid for guard in s.inspect().guards]


@pytest.mark.parametrize("replicas", [1, 2])
def test_a_job_that_others_cancel_is_told_as_cancelled(s: SlurmScheduler, cluster: SlurmCluster, replicas: int) -> None:
    """On one node and on two."""
    role = s.start("actor", replicas=replicas, gpu=4, **SMALL)
    failed = waiting_call(role)
    job = job_of(cluster)
    cluster.ask("scancel", job)
    assert f"Slurm says of job {job}: CANCELLED" in str(failed())
    for worker in role:
        with pytest.raises(WorkerFailedError, match=f"job {job}: CANCELLED"):
            worker.call("pid")
    s.delete_workers("actor")


@pytest.mark.slow("Slurm looks at time limits every half a minute", seconds=75)
def test_the_time_limit_is_announced_and_then_told(make: Make, cluster: SlurmCluster) -> None:
    """One minute, announced a minute before its end: at once. Slurm ends it within the next half a minute."""
    s = make(time=1, signal_s=60)
    notices: list[dict[str, Any]] = []
    noticed = threading.Event()

    def listen(topic: str, facts: dict[str, Any]) -> None:
        if topic == "notice":
            notices.append(facts)
            noticed.set()

    s.subscribe(listen)
    role = s.start("actor", replicas=2, gpu=4, **SMALL)
    role.create_engine(sample_engines.Parent)
    job, pids = job_of(cluster), role.call("pid")
    assert noticed.wait(60), Path(s.run_dir, "logs", f"slurm-{job}.out").read_text()
    assert role.call("pid") == pids, "the signal reached nobody but the batch script"
    call = role[0].submit("wait")
    cluster.wait_for(job, "COMPLETING", "TIMEOUT", within_s=120)
    assert f"Slurm says of job {job}: TIMEOUT (TimeLimit)" in str(known_in_time(call))
    assert [(facts["role"], facts["seconds"]) for facts in notices] == [("actor", 60)]
    assert f"Slurm is about to end job {job}" in notices[0]["reason"]
    events = [json.loads(line) for line in Path(s.run_dir, "events.jsonl").read_text().splitlines()]
    assert [event["event"] for event in events].index("notice") == 0


def test_a_notice_may_come_before_there_are_guards(make: Make, cluster: SlurmCluster, tmp_path: Path) -> None:
    """The user's lines of shell still run when the signal comes."""
    s = make(additional_bash_cmds=[f"while [[ ! -e {tmp_path}/go ]]; do sleep 0.1; done"])
    noticed = threading.Event()
    s.subscribe(lambda topic, facts: noticed.set() if topic == "notice" else None)
    starting = threading.Thread(target=s.start, args=("actor",), kwargs=SMALL)
    starting.start()
    wait_for(lambda: "RUNNING" in str(cluster.jobs()), 30, "running job")
    wait_for(lambda: list(Path(s.run_dir, "logs").glob("slurm-*.out")), 30, "begun script")
    cluster.ask("scancel", "--batch", "--signal=URG", job_of(cluster))
    (tmp_path / "go").touch()
    starting.join(60)
    assert noticed.wait(10)
    s.start("second", **SMALL)  # nothing else was disturbed


def test_a_guard_that_is_killed_ends_its_job(s: SlurmScheduler, cluster: SlurmCluster) -> None:
    """The death of one guard ends all of the role's job, and the role can be started again."""
    role = s.start("actor", replicas=2, gpu=4, **SMALL)
    failed = waiting_call(role)
    os.kill(guards(s)[0], signal.SIGKILL)
    error = failed()
    assert "it ended with its guard" in str(error) and "Slurm says of job" in str(error)
    wait_for(lambda: not cluster.jobs(), 30, "empty queue")
    assert processes(s.run_id, "ROLECALL_WORKER=actor/1") == {}
    s.delete_workers("actor")
    s.start("actor", **SMALL)


def test_a_worker_that_somebody_kills_leaves_its_job_and_the_others(s: SlurmScheduler, cluster: SlurmCluster) -> None:
    """The death of one worker leaves the job and its other workers running."""
    role = s.start("actor", replicas=2, **SMALL)
    failed = waiting_call(role)
    os.kill(s.inspect().worker("actor/0").pid, signal.SIGKILL)
    assert (failed().signal, failed_reason(role)) == (signal.SIGKILL, "")
    assert role[1].call("pid") == s.inspect().worker("actor/1").pid
    assert list(cluster.jobs().values()) == ["rolecall-slurm-actor RUNNING"]


def failed_reason(role: Role) -> str:
    with pytest.raises(WorkerFailedError) as caught:
        role[0].call("pid")
    return caught.value.reason


def test_a_guard_that_is_stopped_is_ended_with_its_role(s: SlurmScheduler, cluster: SlurmCluster) -> None:
    """It answers nothing, so Slurm ends it."""
    s.start("actor", **SMALL)
    os.kill(guards(s)[0], signal.SIGSTOP)
    s.delete_workers("actor")
    assert cluster.jobs() == {}


def test_a_slurmctld_that_does_not_answer_keeps_no_error_back(
    s: SlurmScheduler, cluster: SlurmCluster, halted_slurmctld: Callable[[], None]
) -> None:
    """Callers are told of a dead guard in time though Slurm cannot be asked why."""
    role = s.start("actor", **SMALL)
    failed = waiting_call(role)
    halted_slurmctld()
    os.kill(guards(s)[0], signal.SIGKILL)
    assert "its connection closed" in str(failed())


@pytest.fixture
def halted_slurmctld(cluster: SlurmCluster) -> Iterator[Callable[[], None]]:
    """Stops slurmctld when called; it goes on after the test."""
    pid = int((cluster.folder / "run" / "slurmctld.pid").read_text().split()[0])
    yield lambda: os.kill(pid, signal.SIGSTOP)
    os.kill(pid, signal.SIGCONT)


def test_more_memory_than_was_asked_for_is_told_in_slurms_words(s: SlurmScheduler, cluster: SlurmCluster) -> None:
    """The job's state tells no more than that its script failed; Slurm says why to the script alone.

    The worker on the other node ends with it, perhaps before Slurm has a reason: nobody waits for one after a SIGKILL.
    """
    role = s.start("actor", replicas=2, gpu=4, **SMALL)
    role.create_engine(sample_engines.Hungry)
    error = str(known_in_time(role[0].submit("eat", 2048)))
    assert re.search(r"Slurm says of job \d+: FAILED \(NonZeroExitCode\): .*slurmstepd.*exceeded memory limit", error)
    with pytest.raises(WorkerFailedError):
        role[1].call("eat", 1)
    s.delete_workers("actor")


@pytest.mark.parametrize(
    ("partition", "signal_s", "told"),
    [
        ("yielding", 120, "PREEMPTED"),
        ("yielding", 0, r"(RUNNING|COMPLETED): preempted at [\d:T-]+"),  # its step is ended at once, its script is not
        ("ousted", 0, "PREEMPTED"),
    ],
)
def test_a_job_that_another_one_displaces_is_told_as_preempted(
    make: Make, cluster: SlurmCluster, partition: str, signal_s: int, told: str
) -> None:
    """Where Slurm gives it time, and a signal was asked for, the notice comes before."""
    s = make(partition=partition, signal_s=signal_s)
    news: list[str] = []
    s.subscribe(lambda topic, facts: news.append(topic))
    role = s.start("actor", replicas=2, gpu=4, **SMALL)
    failed = waiting_call(role)
    job = job_of(cluster)
    (other,) = cluster.ask("sbatch", "--parsable", "--partition=urgent", "--wrap=exec sleep 600", *ALL_DEVICES)
    try:
        cluster.wait_for(job, "COMPLETING", "PREEMPTED", "COMPLETED")
        assert re.search(rf"Slurm says of job {job}: {told}[ )]", str(failed()))
        cluster.wait_for(other, "RUNNING")
        s.close()
    finally:
        cluster.ask("scancel", other)
    assert (news[0] == "notice") == bool(signal_s)


def test_a_node_that_slurm_gives_up_is_told_as_such(s: SlurmScheduler, cluster: SlurmCluster) -> None:
    """Slurm ends a job that loses one of its nodes."""
    role = s.start("wide", replicas=2, nodelist="n[1-2]", **SMALL)
    failed = waiting_call(role)
    job = job_of(cluster)
    cluster.ask("scontrol", "update", "NodeName=n2", "State=DOWN", "Reason=test")
    try:
        assert f"Slurm says of job {job}: NODE_FAIL" in str(failed())
        s.close()
    finally:
        cluster.resume("n2")


def test_a_node_where_everything_dies_at_once_is_told_in_time(s: SlurmScheduler, cluster: SlurmCluster) -> None:
    """slurmd first, so that Slurm does not know yet what happened; its job ends all the same."""
    role = s.start("wide", replicas=2, nodelist="n[1-2]", **SMALL)
    failed = waiting_call(role)
    job = job_of(cluster)
    try:
        fail_node(cluster, "n2", s.run_id)
        assert f"Slurm says of job {job}" in str(failed())
        s.close()
    finally:
        cluster.mend()


def fail_node(cluster: SlurmCluster, node: str, run_id: str) -> None:
    """Kills slurmd and all that it has started for a run."""
    slurmd = int((cluster.folder / "run" / f"slurmd-{node}.pid").read_text().split()[0])
    os.kill(slurmd, signal.SIGKILL)
    for pid in processes(run_id, f"SLURMD_NODENAME={node}"):
        os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize(
    ("state", "reason"),
    [("OUT_OF_MEMORY", "OutOfMemory"), ("BOOT_FAIL", "None"), ("DEADLINE", "DeadLine")],
)
def test_every_end_is_told_in_slurms_words(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: str, reason: str
) -> None:
    """A real job whose state is shown as another one, for what a cluster on one machine cannot bring about."""
    fake = FakeSlurm(tmp_path / "bin", programs=[])
    real = os.environ["PATH"]
    change = f"-e 's/|[A-Z]*|\\([^|]*\\)|.*/|{state}|\\1|{reason}/'"
    fake.does(
        "squeue", f'PATH={real}\nif [[ -e {tmp_path}/ended ]]; then squeue "$@" | sed {change}; else squeue "$@"; fi'
    )
    monkeypatch.setenv("PATH", f"{fake.folder}:{real}")
    s = make()
    failed = waiting_call(s.start("actor", **SMALL))
    (tmp_path / "ended").touch()
    os.kill(guards(s)[0], signal.SIGKILL)
    shown = f"{state} ({reason})" if reason != "None" else state
    assert f": {shown} (" in str(failed())
    (tmp_path / "ended").unlink()
