"""Slurm without a run of our own: whether it can be used from here, and jobs that runs have left in its queue."""

from __future__ import annotations

import shutil
from collections import defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from rolecall.errors import SlurmError
from rolecall.placement.outside import Finding, Left, Removal, info, ok, warning
from rolecall.placement.slurm.allocation import SlurmAllocation
from rolecall.placement.slurm.commands import Slurm
from rolecall.placement.slurm.script import job_comment, run_of
from rolecall.protocol.state import RunState

CHECK = "slurm"
AT_ONCE = 16
BRIEF_S = 5.0
CANNOT_START = ("down", "drain", "drng", "fail", "maint", "unk")


def end_jobs(run_id: str, state: RunState, *, surely: bool) -> Removal:
    """Ends a run's jobs, waiting ones and running ones, and asks again whether any is left.

    Slurm is asked too where a run is not known here, and where its controller has ended and may have had to leave a
    job; but then it need not answer.

    Args:
        surely: The run is one of Slurm's, and its controller has not ended it.
    """
    if not surely and (state.scheduler not in ("", CHECK) or shutil.which("squeue") is None):
        return Removal()
    slurm, comment = Slurm(), job_comment(run_id)
    patience: dict[str, Any] = {} if surely else {"answer_s": BRIEF_S, "within_s": 0.0}
    try:
        found = slurm.of_run(comment, **patience)
        return _end(slurm, comment, found) if found else Removal(asked=True)
    except SlurmError as e:
        return Removal(unknown=f"Slurm: {e}") if surely else Removal()


def _end(slurm: Slurm, comment: str, found: list[str]) -> Removal:
    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(lambda job: SlurmAllocation(slurm, job, comment).release(), found))
    left = slurm.of_run(comment)
    ended = [_named(job) for job in found if job not in left]
    return Removal(True, ended, list(map(_named, left)), advice=f"scontrol show job {left[0]}" if left else "")


def left_jobs() -> Iterable[Left]:
    """Jobs by run; none where Slurm does not answer, which is `check_slurm`'s to say."""
    groups: dict[str, list[str]] = defaultdict(list)
    try:
        for job, _, comment in Slurm().left(answer_s=BRIEF_S, within_s=0.0) if shutil.which("squeue") else ():
            groups[comment].append(job)
    except SlurmError:
        return
    for comment, jobs in groups.items():
        yield Left(run_of(comment), list(map(_named, jobs)), f"scancel {' '.join(jobs)}")


def _named(job: str) -> str:
    return f"job {job}"


def check_slurm() -> Iterator[Finding]:
    """The command line tools, the controller daemon, and nodes that take no job."""
    if shutil.which("sbatch") is None:
        yield info(CHECK, "no sbatch on PATH", 'only needed for scheduler("slurm"), on a login node of the cluster')
        return
    try:
        nodes = Slurm().node_states(BRIEF_S)
    except SlurmError as e:
        yield warning(CHECK, f"Slurm is installed but does not answer: {e.seen}", "see docs/slurm.md", "scontrol ping")
        return
    closed = [f"{node} ({state})" for node, state in nodes.items() if state.lower().startswith(CANNOT_START)]
    if closed:
        yield warning(
            CHECK, f"{len(closed)} of {len(nodes)} node(s) take no job: {', '.join(closed[:8])}", "ask why", "sinfo -R"
        )
    if len(closed) < len(nodes):
        yield ok(CHECK, f"{len(nodes) - len(closed)} node(s) take jobs")
