"""A job as the scheduler sees it, in states that are brought about by programs of Slurm's names."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from rolecall.errors import SlurmError
from rolecall.placement.allocations import RUNS, AllocationStatus, ExitCause
from rolecall.placement.slurm import placement as slurm_module
from rolecall.placement.slurm.commands import Slurm
from rolecall.placement.slurm.placement import SlurmAllocation
from rolecall.placement.slurm.states import JobState
from tests.placement.slurm.fake_slurm import FakeSlurm


@pytest.fixture
def fake(tmp_path: Path) -> FakeSlurm:
    return FakeSlurm(tmp_path / "bin")


@pytest.fixture
def job(fake: FakeSlurm) -> SlurmAllocation:
    return SlurmAllocation(Slurm(fake.environment), "7", "rolecall/0123")


def shows(fake: FakeSlurm, state: str, reason: str = "None", start: str = "N/A") -> None:
    fake.says("squeue", f"7|{state}|{start}|{reason}\n")


def test_where_a_job_stands(fake: FakeSlurm, job: SlurmAllocation) -> None:
    """A pending job is reported as queued with its reason and expected start."""
    shows(fake, "PENDING", "Priority", "2026-11-21T05:00:00")
    assert job.poll() == AllocationStatus("queued", "job 7: Priority, expected to start at 2026-11-21T05:00:00")


def test_nodes_that_are_being_booted_count_as_queue(fake: FakeSlurm, job: SlurmAllocation) -> None:
    """CONFIGURING counts as queued."""
    shows(fake, "CONFIGURING")
    assert job.poll() == AllocationStatus("queued", "job 7: CONFIGURING: no reason given")


def test_an_unknown_state_runs(fake: FakeSlurm, job: SlurmAllocation, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing is given up, and a line says that there is a word that this version does not know."""
    shows(fake, "DREAMING")
    assert job.poll() == AllocationStatus("running", "job 7")
    assert job.exit_cause(0) == RUNS
    assert "'DREAMING', which this version does not know" in caplog.text


def test_a_job_that_is_not_listed_any_more_has_ended(fake: FakeSlurm, job: SlurmAllocation) -> None:
    """A job that squeue no longer lists has ended and is not cancelled."""
    fake.says("squeue", "")
    assert job.poll() == AllocationStatus("ended", "Slurm does not list job 7 any more")
    assert job.exit_cause(0) == ExitCause(True, "Slurm does not list job 7 any more")
    job.release()
    assert fake.calls("scancel") == []


@pytest.mark.parametrize("errors", ["slurm_load_jobs error: Unable to contact slurm controller\n", ""])
def test_no_answer_is_no_end(fake: FakeSlurm, job: SlurmAllocation, errors: str) -> None:
    """It stands where it stood, and the reason says what the matter is."""
    assert job.poll().state == "running"
    fake.says("squeue", "what is this?" if not errors else "", errors=errors, code=1 if errors else 0)
    wait_until(lambda: "squeue" in job.poll().reason)
    assert job.poll().state == "running"
    with pytest.raises(SlurmError):
        job.exit_cause(0)


def wait_until(look: Callable[[], bool]) -> None:
    """What was seen is kept for a moment."""
    deadline = time.monotonic() + 10
    while not look():
        assert time.monotonic() < deadline
        threading.Event().wait(0.05)


def test_what_completing_hides_may_come_later(fake: FakeSlurm, job: SlurmAllocation) -> None:
    """The cause of a COMPLETING job is provisional and is replaced by the final state."""
    shows(fake, "COMPLETING", "NodeDown")
    assert job.exit_cause(0) == ExitCause(True, "Slurm says of job 7: COMPLETING (NodeDown)", final=False)
    shows(fake, "NODE_FAIL", "NodeDown")
    wait_until(lambda: job.exit_cause(0) == ExitCause(True, "Slurm says of job 7: NODE_FAIL (NodeDown)"))


def test_a_suspended_job_is_told_as_why_its_guards_are_silent(fake: FakeSlurm, job: SlurmAllocation) -> None:
    """A suspended job counts as running, and as the cause of its guards' silence."""
    shows(fake, "SUSPENDED")
    assert job.poll().state == "running"
    assert job.exit_cause(0) == ExitCause(True, "Slurm says of job 7: SUSPENDED")


@pytest.mark.parametrize("state", ["RUNNING", "COMPLETED", "FAILED"])
def test_what_a_state_keeps_back_is_told_behind_it(fake: FakeSlurm, job: SlurmAllocation, state: str) -> None:
    """A job that has time to end still runs when Slurm has ended its workers already. Slurm is asked once for all."""
    shows(fake, state)
    fake.says("scontrol", "JobId=7\n   PreemptTime=2026-11-21T05:00:00\n   Comment=rolecall/0123: srun: error: x\n")
    words = f"Slurm says of job 7: {state}: preempted at 2026-11-21T05:00:00; srun: error: x"
    assert [job.exit_cause(n) for n in range(4)] == [ExitCause(True, words, final=state != "RUNNING")] * 4
    assert len(fake.calls("scontrol")) == 1


def test_a_state_that_tells_all_is_told_alone(fake: FakeSlurm, job: SlurmAllocation) -> None:
    """A state that explains itself needs no further question to Slurm."""
    shows(fake, "TIMEOUT", "TimeLimit")
    assert job.exit_cause(0) == ExitCause(True, "Slurm says of job 7: TIMEOUT (TimeLimit)")
    assert fake.calls("scontrol") == []


def test_a_pending_job_is_cancelled_at_once(fake: FakeSlurm, job: SlurmAllocation) -> None:
    """Releasing a pending job cancels it once, however often it is released."""
    shows(fake, "PENDING")
    fake.does("scancel", f"echo '7|CANCELLED|N/A|None' >{fake.folder}/squeue.answer")
    job.release()
    assert fake.calls("scancel") == [["7"]]
    job.release()
    assert fake.calls("scancel") == [["7"]]


def test_a_job_that_outlives_everything_is_named(
    fake: FakeSlurm, job: SlurmAllocation, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Time to end by itself, SIGTERM, SIGKILL; then a line that says which job it is, and no wait without an end."""
    for name, seconds in (("END_S", 0.3), ("TERM_S", 0.3), ("GONE_S", 1.5)):
        monkeypatch.setattr(slurm_module, name, seconds)
    shows(fake, "COMPLETING")
    job.release()
    assert fake.calls("scancel") == [["7"], ["--full", "--signal=KILL", "7"]]
    assert "job 7 is still in the queue (COMPLETING); see `scontrol show job`" in caplog.text


@pytest.mark.slow("waits until it is asked again")
def test_a_slurmctld_that_is_down_while_a_job_is_given_back_is_asked_again(
    fake: FakeSlurm, job: SlurmAllocation
) -> None:
    """A failed cancellation is repeated until Slurm answers."""
    for program in ("squeue", "scancel"):
        fake.says(program, errors="slurmctld is down", code=1)
    with ThreadPoolExecutor(1) as pool:
        releasing = pool.submit(job.release)
        wait_until(lambda: len(fake.calls("scancel")) > 1)
        fake.does("scancel", f"echo '7|CANCELLED|N/A|None' >{fake.folder}/squeue.answer")
        shows(fake, "RUNNING")
        releasing.result(timeout=30)
    assert set(map(tuple, fake.calls("scancel"))) == {("7",)}


class Counting(Slurm):
    """Counts the questions."""

    def __init__(self) -> None:
        super().__init__({})
        self.asked = 0
        self.go = threading.Event()

    def jobs(self, answer_s: float = 0.0) -> dict[str, JobState]:
        self.asked += 1
        self.go.wait(answer_s)
        return {str(self.asked): JobState("RUNNING")}


def test_who_asks_at_the_same_time_shares_an_answer() -> None:
    """Concurrent callers share one squeue."""
    slurm = Counting()
    now = time.monotonic()
    with ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(slurm.job, "1", now, 30.0) for _ in range(8)]
        slurm.go.set()
        assert all(answer.result() == JobState("RUNNING") for answer in answers)
    assert slurm.asked == 1


def test_an_answer_to_an_older_question_does_not_count_for_a_job_that_came_after_it() -> None:
    """A job submitted after the last squeue causes a new one."""
    slurm = Counting()
    slurm.go.set()
    assert slurm.job("2", time.monotonic(), 30.0) is None
    assert slurm.job("2", time.monotonic(), 30.0) == JobState("RUNNING")


def test_nobody_waits_longer_than_he_wants_to_for_anothers_question() -> None:
    """A caller's own time limit holds while another caller's squeue is running."""
    slurm = Counting()
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(slurm.job, "1", time.monotonic(), 30.0)
        wait_until(lambda: slurm.asked == 1)
        with pytest.raises(SlurmError, match=r"no answer within 0.1 s"):
            slurm.job("1", time.monotonic(), 0.1)
        slurm.go.set()
        assert slow.result() == JobState("RUNNING")
