"""Slurm: one job for each role, in it one guard on each node. It runs no command itself and knows no script's text."""

from __future__ import annotations

import logging
import os
import shutil
import socket
import sys
import sysconfig
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import msgspec

from rolecall.errors import SlurmError, WorkerConfigurationError, WorkerCreationError
from rolecall.guard.proc import read_text
from rolecall.placement.allocations import RUNS, AllocationStatus, ClusterPlacement, ExitCause
from rolecall.placement.base import ExpectedGuard, PlacementContext
from rolecall.placement.launching import current_folder, python_path
from rolecall.placement.outside import Finding, Left, Removal, info, ok, warning
from rolecall.placement.plan import Plan, base_environment, dealt, separate_slots
from rolecall.placement.slurm.commands import ANSWER_S, Slurm
from rolecall.placement.slurm.options import SlurmOptions, with_defaults
from rolecall.placement.slurm.packing import MIB, Node, place
from rolecall.placement.slurm.script import Surroundings, filled, job_comment, job_name, render, run_of
from rolecall.placement.slurm.states import JobState
from rolecall.protocol.guard_config import GuardConfig
from rolecall.protocol.message import to_plain
from rolecall.protocol.state import RunState
from rolecall.transport.address import address_toward
from rolecall.transport.threads import at_once
from rolecall.types import Job

log = logging.getLogger("rolecall")
NAME = "slurm"
BRIEF_S = 5.0
CANNOT_START = ("down", "drain", "drng", "fail", "maint", "unk")
FRESH_S = 0.4
SHORTEST_PAUSE_S = 0.1
LONGEST_POLL_S = 5.0  # while a job waits, for hours perhaps; its guards connect by themselves
TOLD_S = 4.0  # for an answer that somebody waits for
END_S = 2.0  # a job ends by itself when its guards have
TERM_S = 8.0
GONE_S = 60.0
TAIL_BYTES = 2000
MOST_NAMES = 8  # of nodes whose addresses are looked up, until one is found


@dataclass(frozen=True)
class SlurmPlan(Plan):
    """A role's plan. `python_path`: where the guards' and workers' interpreter finds the controller's modules."""

    python_path: tuple[str, ...] = ()


class SlurmPlacement(ClusterPlacement[SlurmPlan]):
    """Workers in jobs of a Slurm cluster.

    Args:
        ip: The controller's address as the cluster's hosts see it; found out when None.
        queue_timeout: Seconds that a role may wait for its place in the cluster; None waits for ever. Time to start
            (`start_timeout`) is counted from then on.
        options: Those of `SlurmOptions`.
    """

    name = NAME
    further_options = tuple(field.name for field in fields(SlurmOptions))

    def __init__(self, *, ip: str | None = None, queue_timeout: float | None = None, **options: Any) -> None:
        super().__init__(ip, queue_timeout)
        self._options = with_defaults(options, os.environ)
        # For the commands and for the job; where modules are is in the script.
        environment = base_environment(os.environ, [])
        del environment["PYTHONPATH"]
        self._slurm = Slurm(environment)

    def open(self, context: PlacementContext) -> None:
        partition = self._options.partition
        self._context, self._found = context, self._slurm.nodes(partition, self._options.gres)
        if not self._found:
            which = "no default partition" if partition is None else "no node in the partition"
            raise WorkerConfigurationError(which, partition, "pass partition=...; `sinfo` lists them")
        self.n_gpus_per_node = max((node.share.gpus for node in self._nodes(self._options)), default=0)
        self._begin(context, self._ip or _own_address(self._found))

    def plan(self, job: Job) -> SlurmPlan:
        options = self._options.of(job)
        named = len(self._slurm.hosts(options.nodelist)) if options.nodelist else 0
        packing = place(job.role, job.specs(), self._nodes(options), named)
        path = tuple(_portable(python_path()) if options.container or options.python else python_path())
        here = Surroundings(
            experiment=self._context.experiment,
            run_id=self._context.run_id,
            log_dir=str(self._context.run_dir / "logs"),
            cwd=current_folder(),
            python=options.python or ("python3" if options.container else sys.executable),
            python_path=path,
            binds=[str(self._context.run_dir)],
        )
        slots = separate_slots(job, packing.node.cpus)
        script = render(job.role, packing, options, here)
        return SlurmPlan(job.role, slots, guards=packing.guards, script=script, python_path=path)

    def _submit(self, plan: SlurmPlan, name: str, config: GuardConfig) -> SlurmAllocation:
        config = msgspec.structs.replace(config, sys_path=list(plan.python_path), notices=True)
        try:
            job_id = self._slurm.submit(filled(plan.script, name, to_plain(config)))
            log.info("role %s is job %s", plan.role, job_id)
            return self._allocation(job_id)
        except BaseException as e:  # Ctrl-C, or a slurmctld so slow that nobody knows whether it has taken the job
            self._take_back(plan.role)
            if isinstance(e, SlurmError):
                raise WorkerCreationError(plan.role, str(e)) from e
            raise

    def _allocation(self, job_id: str) -> SlurmAllocation:
        output = self._context.run_dir / "logs" / f"slurm-{job_id}.out"
        return SlurmAllocation(self._slurm, job_id, job_comment(self._context.run_id), output)

    def _take_back(self, role: str) -> None:
        comment, name = job_comment(self._context.run_id), job_name(self._context.experiment, role)
        try:
            for job_id in self._slurm.of_run(comment, name):
                self._allocation(job_id).release()
        except SlurmError as e:
            log.warning("role %s: a job may be left in the queue, whose guards would end at once: %s", role, e)

    def _nodes(self, options: SlurmOptions) -> list[Node]:
        """The nodes that a job may get, with what the user knows better of them."""
        only = set(self._slurm.hosts(options.nodelist)) if options.nodelist else None
        never = set(self._slurm.hosts(options.exclude)) if options.exclude else set()
        found = [node for node in self._found if node.name not in never and (only is None or node.name in only)]
        memory = None if options.mem_per_node is None else options.mem_per_node * MIB
        figures = {"cpus": options.cpus_per_node, "mem": memory, "gpus": options.n_gpus_per_node}
        better = {name: figure for name, figure in figures.items() if figure is not None}
        return [replace(node, share=replace(node.share, **better)) for node in found]

    @classmethod
    def end_left(cls, run_id: str, state: RunState) -> Removal:
        return end_jobs(run_id, state, surely=state.scheduler == cls.name and not state.controller.ended)

    @classmethod
    def left(cls) -> Iterable[Left]:
        return left_jobs()

    @classmethod
    def findings(cls) -> Iterable[Finding]:
        return check_slurm()


def _own_address(nodes: Sequence[Node]) -> str:
    """This host's address in the cluster."""
    for node in nodes[:MOST_NAMES]:
        try:
            return address_toward(node.address)
        except OSError:  # a node that is not there now, in the cloud perhaps, has no address yet
            continue
    return address_toward(socket.gethostname())


def _portable(path: Sequence[str]) -> list[str]:
    """Folders of modules without those of this interpreter's installation, which another one cannot use."""
    own = tuple(str(Path(sysconfig.get_path(name))) for name in ("stdlib", "platstdlib"))
    theirs = ("site-packages", "dist-packages")
    return [
        folder
        for folder in path
        if not folder.startswith(own) and not folder.endswith(".zip") and not set(theirs) & set(Path(folder).parts)
    ]


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


# What the command line asks, without a run of its own.


def end_jobs(run_id: str, state: RunState, *, surely: bool) -> Removal:
    """Ends a run's jobs, waiting ones and running ones, and asks again whether any is left.

    Slurm is asked too where a run is not known here, and where its controller has ended and may have had to leave a
    job; but then it need not answer.

    Args:
        surely: The run is one of Slurm's, and its controller has not ended it.
    """
    if not surely and (state.scheduler not in ("", NAME) or shutil.which("squeue") is None):
        return Removal()
    slurm, comment = Slurm(), job_comment(run_id)
    patience: dict[str, Any] = {} if surely else {"answer_s": BRIEF_S, "within_s": 0.0}
    try:
        found = slurm.of_run(comment, **patience)
        return _end(slurm, comment, found) if found else Removal(asked=True)
    except SlurmError as e:
        return Removal(unknown=f"Slurm: {e}") if surely else Removal()


def _end(slurm: Slurm, comment: str, found: list[str]) -> Removal:
    at_once(lambda job: SlurmAllocation(slurm, job, comment).release(), found)
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
        yield info(NAME, "no sbatch on PATH", 'only needed for scheduler("slurm"), on a login node of the cluster')
        return
    try:
        nodes = Slurm().node_states(BRIEF_S)
    except SlurmError as e:
        yield warning(NAME, f"Slurm is installed but does not answer: {e.seen}", "see docs/slurm.md", "scontrol ping")
        return
    closed = [f"{node} ({state})" for node, state in nodes.items() if state.lower().startswith(CANNOT_START)]
    if closed:
        yield warning(
            NAME, f"{len(closed)} of {len(nodes)} node(s) take no job: {', '.join(closed[:8])}", "ask why", "sinfo -R"
        )
    if len(closed) < len(nodes):
        yield ok(NAME, f"{len(nodes) - len(closed)} node(s) take jobs")
