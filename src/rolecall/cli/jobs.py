"""A run's jobs in Slurm's queue, which wait there when nobody of the run is left to take them back."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from rolecall.cli.runs import SelectedRun, state_of
from rolecall.errors import SlurmError
from rolecall.placement.slurm.commands import Slurm
from rolecall.placement.slurm.queue import Queue
from rolecall.placement.slurm.script import job_comment
from rolecall.placement.slurm.slurm import SlurmAllocation, SlurmScheduler
from rolecall.protocol.state import RunState

AT_ONCE = 16
BRIEF_S = 5.0


@dataclass
class Jobs:
    """What was done about them.

    Attributes:
        asked: Slurm was asked and has answered.
        ended: Ids of those that are gone now.
        left: Ids of those that are not.
        unknown: Why Slurm, which has jobs of the run or had some, could not be asked; empty when it was.
    """

    asked: bool = False
    ended: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    unknown: str = ""

    @property
    def clean(self) -> bool:
        return not (self.left or self.unknown)


def end_jobs(run: SelectedRun) -> Jobs:
    """Ends the run's jobs, waiting ones and running ones, and asks again whether any is left.

    Slurm is asked too where a run is not known here, and where its controller has ended and may have had to leave a
    job; but then it need not answer.
    """
    state = state_of(run.directory) if run.directory else RunState()
    surely = state.scheduler == SlurmScheduler.backend and not state.controller.ended
    if not surely and (state.scheduler not in ("", SlurmScheduler.backend) or shutil.which("squeue") is None):
        return Jobs()
    slurm, comment = Slurm(), job_comment(run.run_id)
    patience: dict[str, Any] = {} if surely else {"answer_s": BRIEF_S, "within_s": 0.0}
    try:
        found = slurm.of_run(comment, **patience)
        return _end(slurm, comment, found) if found else Jobs(asked=True)
    except SlurmError as e:
        return Jobs(unknown=str(e)) if surely else Jobs()


def _end(slurm: Slurm, comment: str, found: list[str]) -> Jobs:
    queue = Queue(slurm)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(lambda job: SlurmAllocation(slurm, queue, job, comment).release(), found))
    left = slurm.of_run(comment)
    return Jobs(True, [job for job in found if job not in left], left)
