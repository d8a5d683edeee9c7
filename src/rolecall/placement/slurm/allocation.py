"""A role's job in Slurm's queue, as the controller follows and ends it."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rolecall.errors import SlurmError
from rolecall.guard.proc import read_text
from rolecall.placement.allocations import AllocationStatus
from rolecall.placement.base import ExpectedGuard
from rolecall.placement.exit_causes import RUNS, ExitCause
from rolecall.placement.plan import Plan, dealt
from rolecall.placement.slurm.commands import ANSWER_S, Slurm
from rolecall.placement.slurm.states import JobState

log = logging.getLogger("rolecall")
FRESH_S = 0.4
SHORTEST_PAUSE_S = 0.1
LONGEST_POLL_S = 5.0  # while a job waits, for hours perhaps; its guards connect by themselves
TOLD_S = 4.0  # for an answer that somebody waits for
END_S = 2.0  # a job ends by itself when its guards have
TERM_S = 8.0
GONE_S = 60.0
TAIL_BYTES = 2000


class SlurmAllocation:
    """A job.

    Args:
        comment: What it was submitted with; its script may have added to it.
        output: What its script and its `srun` write, where the controller sees the file too.
    """

    def __init__(self, slurm: Slurm, job_id: str, comment: str, output: Path | None = None) -> None:
        self._slurm, self.job_id, self._comment, self._output = slurm, job_id, comment, output
        self._began = time.monotonic()
        self._status = AllocationStatus("queued")
        self._gone = False
        self._why, self._why_asked = "", (float("-inf"), "")

    def poll(self) -> AllocationStatus:
        """Where it stood when Slurm last said so: one that does not answer is no reason to give a place up."""
        waited = time.monotonic() - self._began
        try:
            state = self._look(min(max(FRESH_S, waited / 10), LONGEST_POLL_S), TOLD_S)
        except SlurmError as e:
            self._status = replace(self._status, reason=str(e))
            return self._status
        if state is None or state.meaning == "ended":
            self._status = AllocationStatus("ended", self._said(state) + (self._tail() or self._beside()))
        else:
            wait = f": {state.wait}" if state.meaning == "queued" else ""
            self._status = AllocationStatus(state.meaning, f"job {self.job_id}{wait}")
        return self._status

    def settled(self, plan: Plan, guards: Sequence[ExpectedGuard]) -> Plan | None:
        return dealt(plan, [g.state.devices for g in guards]) if all(g.connected for g in guards) else None

    def exit_cause(self, ordinal: int) -> ExitCause:
        state = self._look(FRESH_S, TOLD_S)
        cause = self._cause(state)
        if state is not None and state.runs and not cause:
            return RUNS
        return ExitCause(True, self._said(state) + cause, final=state is None or (state.has_outcome and not state.runs))

    def release(self) -> None:
        """Ends the job by itself, by SIGTERM, by SIGKILL, whichever is first enough, and waits until it is gone."""
        began, pause, asked = time.monotonic(), SHORTEST_PAUSE_S, set[bool]()
        while not self._gone:
            state = self._state()
            if self._gone:
                return
            age = time.monotonic() - began
            ends_by_itself = isinstance(state, JobState) and state.meaning != "queued"
            for kill, due in ((False, END_S if ends_by_itself else 0.0), (True, END_S + TERM_S)):
                if age >= due and kill not in asked and self._cancel(kill):
                    asked.add(kill)
            if age > GONE_S:
                log.warning("job %s is still in the queue (%s); see `scontrol show job`", self.job_id, state)
                return
            time.sleep(pause)
            pause = min(1.5 * pause, 1.0)

    def _state(self) -> JobState | SlurmError | None:
        """What Slurm says now; notes when the job is gone."""
        try:
            state = self._look(0.0)
        except SlurmError as e:
            return e
        self._gone = state is None or (state.meaning == "ended" and not state.completing)
        return state

    def _cancel(self, kill: bool) -> bool:
        try:
            self._slurm.cancel(self.job_id, kill=kill)
        except SlurmError as e:  # it ended by itself just now, or slurmctld is restarting
            log.info("job %s: %s", self.job_id, e)
            return False
        return True

    def _look(self, age_s: float, answer_s: float = ANSWER_S) -> JobState | None:
        """The job's state, at most so old, and never older than the job."""
        return self._slurm.job(self.job_id, max(self._began, time.monotonic() - age_s), answer_s)

    def _said(self, state: JobState | None) -> str:
        if state is None:
            return f"Slurm does not list job {self.job_id} any more"
        return f"Slurm says of job {self.job_id}: {state}"

    def _cause(self, state: JobState | None) -> str:
        """What the state keeps back. Slurm is asked no more often for many guards than for one."""
        if state is None or not state.hides_cause:
            return ""
        asked_at, of_state = self._why_asked
        if not self._why and (time.monotonic() - asked_at > FRESH_S or str(state) != of_state):
            self._why, self._why_asked = self._beside(), (time.monotonic(), str(state))
        return self._why or ("" if state.runs else self._tail())

    def _beside(self) -> str:
        """That it was preempted, or what Slurm told the script when `srun` failed: a lack of memory, for instance."""
        try:
            words = self._slurm.end_details(self.job_id, self._comment)
        except SlurmError:  # it is an addition to what is known already
            words = ""
        return f": {words}" if words else ""

    def _tail(self) -> str:
        """What the script wrote last."""
        # Empty: no file system that both see, or nothing was written.
        text = read_text(self._output)[-TAIL_BYTES:].strip() if self._output else ""
        return f"; its output ends with\n{text}" if text else ""
