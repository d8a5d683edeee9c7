"""Every word that Slurm has for a job's state means something to us, and one that it has not yet does no harm."""

from __future__ import annotations

import pytest

from rolecall.placement.slurm.states import JobState

QUEUED = ["PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "RESV_DEL_HOLD", "SPECIAL_EXIT"]
RUNNING = ["RUNNING", "SUSPENDED", "STOPPED", "SIGNALING", "RESIZING", "STAGE_OUT"]
ENDED = ["COMPLETED", "COMPLETING", "CANCELLED", "FAILED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "BOOT_FAIL", "DEADLINE"]
ENDED += ["OUT_OF_MEMORY", "REVOKED", "LAUNCH_FAILED", "CANCELLED by 0", "CANCELLED+", "CANCELLED,COMPLETING"]


@pytest.mark.parametrize("words", QUEUED)
def test_queued(words: str) -> None:
    """States that mean waiting."""
    assert JobState(words).meaning == "queued"


@pytest.mark.parametrize("words", RUNNING)
def test_running(words: str) -> None:
    """States that mean running."""
    assert JobState(words).meaning == "running"


@pytest.mark.parametrize("words", ENDED)
def test_ended(words: str) -> None:
    """States that mean the end."""
    assert JobState(words).meaning == "ended"


@pytest.mark.parametrize(("words", "meaning"), [("DREAMING", "running"), ("", "running"), ("DREAMING,FAILED", "ended")])
def test_unknown_words_are_taken_for_running_and_logged(
    words: str, meaning: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A state that this version does not know ends nothing, and is logged."""
    assert JobState(words).meaning == meaning
    assert f"Slurm calls a job {words!r}, which this version does not know" in caplog.text


@pytest.mark.parametrize(
    ("words", "reason", "completing", "told"),
    [
        ("COMPLETING", "None", True, False),
        ("COMPLETING", "TimeLimit", True, False),
        ("CANCELLED,COMPLETING", "None", True, True),
        ("CANCELLED", "None", False, True),
    ],
)
def test_a_job_that_is_completing_holds_its_nodes_and_may_not_say_why(
    words: str, reason: str, completing: bool, told: bool
) -> None:
    """COMPLETING is known apart, and whether a state explains the end."""
    state = JobState(words, reason)
    assert (state.completing, state.has_outcome) == (completing, told)


def test_what_is_shown_has_reason_and_expected_start_where_slurm_knows_them() -> None:
    """Placeholders of Slurm such as `None` and `N/A` are left out."""
    assert str(JobState("TIMEOUT", "TimeLimit")) == "TIMEOUT (TimeLimit)"
    assert str(JobState("CANCELLED", "None")) == "CANCELLED"
    assert JobState("PENDING", "Priority", "N/A").wait == "Priority"
    waiting = JobState("PENDING", "Resources", "2026-11-21T05:00:00").wait
    assert waiting == "Resources, expected to start at 2026-11-21T05:00:00"
    assert JobState("CONFIGURING", "None", "2026-11-21T05:00:00").wait.startswith("CONFIGURING: no reason given")
