"""Jobs in Slurm's queue that outlived their run's controller."""

from __future__ import annotations

import shlex
import shutil
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from rolecall.cli.checks.clusters import SLURM, TIMEOUT_S
from rolecall.cli.checks.finding import Finding, info, ok, warning
from rolecall.cli.rundir import RunDir, on_another_host
from rolecall.cli.runs import find_runs, selected, state_of
from rolecall.errors import SlurmError
from rolecall.placement.slurm.commands import Slurm
from rolecall.placement.slurm.script import job_comment


def check_left_jobs(fileroot: Path) -> Iterator[Finding]:
    """One finding for each run that has jobs; whether Slurm answers at all is another check's to say."""
    groups: dict[str, list[str]] = defaultdict(list)
    try:
        left = Slurm().left(answer_s=TIMEOUT_S, within_s=0.0) if shutil.which("squeue") else []
    except SlurmError:
        return
    if not left:
        return
    for job, _, comment in left:
        groups[comment].append(job)
    directories = {job_comment(selected(run).run_id): run for run in find_runs(fileroot)}
    for comment, jobs in groups.items():
        yield _judge(comment, ", ".join(jobs), directories.get(comment))


def _judge(comment: str, jobs: str, directory: RunDir | None) -> Finding:
    if directory is None:
        where = "with its directory under another fileroot, or replaced by a later one of its name"
        return info(SLURM, f"job(s) {jobs} are of {comment}, a run {where}; scancel ends them")
    state = state_of(directory)
    if directory.controller(state) is not None:
        return ok(SLURM, f"run {directory.name}: job(s) {jobs}, and its controller lives")
    if on_another_host(state.controller.host):
        return info(SLURM, f"run {directory.name}: job(s) {jobs}, and a controller on {state.controller.host}")
    advice = "those that wait would end as soon as they start; end them now"
    stop = f"rolecall stop --run {shlex.quote(str(directory.path))} --yes"
    return warning(SLURM, f"run {directory.name} has no controller any more but left job(s) {jobs}", advice, stop)
