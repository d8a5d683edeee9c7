"""A run's jobs in Slurm's queue, which wait there when nobody of the run is left to take them back."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from rolecall.cli.rundir import State
from rolecall.cli.runs import Chosen, state_of
from rolecall.errors import SlurmError
from rolecall.schedulers.slurm import SlurmAllocation, SlurmScheduler
from rolecall.schedulers.slurm_commands import Slurm
from rolecall.schedulers.slurm_queue import Queue
from rolecall.schedulers.slurm_script import job_comment

AT_ONCE = 16


@dataclass
class Jobs:
    """What was done about them.

    Attributes:
        ended: Ids of those that are gone now.
        left: Ids of those that are not.
        unknown: Why Slurm could not be asked; empty when it was.
    """

    ended: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    unknown: str = ""

    @property
    def clean(self) -> bool:
        return not (self.left or self.unknown)


def may_have_jobs(run: Chosen) -> bool:
    """Whether Slurm is to be asked. A controller that ended may have had to leave a job, and a run may be unknown."""
    state = state_of(run.directory) if run.directory else State()
    if state.scheduler == SlurmScheduler.backend and not state.controller.ended:
        return True
    return state.scheduler in ("", SlurmScheduler.backend) and shutil.which("squeue") is not None


def end_jobs(run: Chosen) -> Jobs:
    """Ends the run's jobs, waiting ones and running ones, and asks again whether any is left."""
    slurm, comment = Slurm(), job_comment(run.run_id)
    queue = Queue(slurm)
    try:
        found = slurm.of_run(comment)
        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(lambda job: SlurmAllocation(slurm, queue, job, comment).release(), found))
        left = slurm.of_run(comment)
    except SlurmError as e:
        return Jobs(unknown=str(e))
    return Jobs([job for job in found if job not in left], left)
