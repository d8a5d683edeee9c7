"""Slurm: one job for each role, in it one guard on each node. It runs no command itself and knows no script's text."""

from __future__ import annotations

import logging
import os
import socket
import sys
import sysconfig
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import msgspec

from rolecall.errors import SlurmError, WorkerConfigurationError, WorkerCreationError
from rolecall.placement.cluster import AllocationStatus, ClusterScheduler
from rolecall.placement.exit_causes import RUNS, ExitCause
from rolecall.placement.launching import current_folder, python_path
from rolecall.placement.plan import Plan, base_environment, dealt, separate_slots
from rolecall.placement.slurm.commands import ANSWER_S, Slurm
from rolecall.placement.slurm.options import SlurmOptions, split_options
from rolecall.placement.slurm.packing import MIB, Node, place
from rolecall.placement.slurm.queue import Queue
from rolecall.placement.slurm.script import Surroundings, filled, job_comment, job_name, render
from rolecall.placement.slurm.states import JobState
from rolecall.protocol.guard_config import GuardConfig
from rolecall.protocol.guard_hello import GuardHello
from rolecall.protocol.message import to_plain
from rolecall.scheduler.guards import GuardProxy
from rolecall.transport.hosts import address_toward
from rolecall.types import Job

log = logging.getLogger("rolecall")
FRESH_S = 0.4
SHORTEST_PAUSE_S = 0.1
LONGEST_POLL_S = 5.0  # while a job waits, for hours perhaps; its guards call home by themselves
TOLD_S = 4.0  # for an answer that somebody waits for
END_S = 2.0  # a job ends by itself when its guards have
TERM_S = 8.0
GONE_S = 60.0
MOST_NAMES = 8  # of nodes whose addresses are looked up, until one is found
TAIL_BYTES = 2000


@dataclass(frozen=True)
class SlurmPlan(Plan):
    """A role's plan. `python_path`: where the guards' and workers' interpreter finds the controller's modules."""

    python_path: tuple[str, ...] = ()


class SlurmScheduler(ClusterScheduler):
    """Workers in jobs of a Slurm cluster.

    Args:
        options: Those of `SlurmOptions`, `ClusterScheduler` and `Scheduler`.

    Raises:
        SlurmError: Slurm's commands are not there, or slurmctld does not answer.
    """

    backend = "slurm"
    further_options = tuple(field.name for field in fields(SlurmOptions))

    def __init__(self, **options: Any) -> None:
        self._slurm = Slurm(_job_environment())
        self._queue = Queue(self._slurm)
        self._wishes = split_options(options, os.environ)
        self._found = self._known_nodes()
        self.n_gpus_per_node = max((node.share.gpus for node in self._nodes(self._wishes)), default=0)
        super().__init__(**options)

    def _known_nodes(self) -> list[Node]:
        found = self._slurm.nodes(self._wishes.partition, self._wishes.gres)
        if not found:
            which = "no default partition" if self._wishes.partition is None else "no node in the partition"
            raise WorkerConfigurationError(which, self._wishes.partition, "pass partition=...; `sinfo` lists them")
        return found

    def _join(self) -> str:
        for node in self._found[:MOST_NAMES]:
            try:
                return address_toward(node.address)
            except OSError:  # a node that is not there now, in the cloud perhaps, has no address yet
                continue
        return address_toward(socket.gethostname())

    def _plan(self, job: Job) -> SlurmPlan:
        wishes = self._wishes.of(job)
        named = len(self._slurm.hosts(wishes.nodelist)) if wishes.nodelist else 0
        packing = place(job.role, job.specs(), self._nodes(wishes), named)
        path = tuple(_portable(python_path()) if wishes.container or wishes.python else python_path())
        here = Surroundings(
            experiment=self._run.experiment,
            run_id=self._run.run_id,
            log_dir=str(self._run.run_dir / "logs"),
            cwd=current_folder(),
            python=wishes.python or ("python3" if wishes.container else sys.executable),
            python_path=path,
            binds=[str(self._run.run_dir)],
        )
        slots = separate_slots(job, packing.node.cpus)
        script = render(job.role, packing, wishes, here)
        return SlurmPlan(job.role, slots, guards=packing.guards, script=script, python_path=path)

    def _submit(self, name: str, plan: Plan, config: GuardConfig) -> SlurmAllocation:
        assert isinstance(plan, SlurmPlan)
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
        output = self._run.run_dir / "logs" / f"slurm-{job_id}.out"
        return SlurmAllocation(self._slurm, self._queue, job_id, job_comment(self._run.run_id), output)

    def _take_back(self, role: str) -> None:
        try:
            for job_id in self._slurm.of_run(job_comment(self._run.run_id), job_name(self._run.experiment, role)):
                self._allocation(job_id).release()
        except SlurmError as e:
            log.warning("role %s: a job may be left in the queue, whose guards would end at once: %s", role, e)

    def _nodes(self, wishes: SlurmOptions) -> list[Node]:
        """The nodes that a job may get, with what the user knows better of them."""
        only = set(self._slurm.hosts(wishes.nodelist)) if wishes.nodelist else None
        never = set(self._slurm.hosts(wishes.exclude)) if wishes.exclude else set()
        found = [node for node in self._found if node.name not in never and (only is None or node.name in only)]
        return [replace(node, share=_corrected(node, wishes)) for node in found]


class SlurmAllocation:
    """A job.

    Args:
        comment: What it was submitted with; its script may have added to it.
        output: What its script and its `srun` write, where the controller sees the file too.
    """

    def __init__(self, slurm: Slurm, queue: Queue, job_id: str, comment: str, output: Path | None = None) -> None:
        self._slurm, self._queue, self.job_id = slurm, queue, job_id
        self._comment, self._output = comment, output
        self._began = time.monotonic()
        self._standing = AllocationStatus("queued")
        self._gone = False
        self._why, self._why_asked = "", (float("-inf"), "")

    def poll(self) -> AllocationStatus:
        """Where it stood when Slurm last said so: one that does not answer is no reason to give a place up."""
        waited = time.monotonic() - self._began
        try:
            state = self._look(min(max(FRESH_S, waited / 10), LONGEST_POLL_S), TOLD_S)
        except SlurmError as e:
            self._standing = replace(self._standing, reason=str(e))
        else:
            self._standing = self._stands(state)
        return self._standing

    def _stands(self, state: JobState | None) -> AllocationStatus:
        if state is None or state.meaning == "ended":
            return AllocationStatus("ended", self._words(state) + (self._tail() or self._beside()))
        return AllocationStatus(
            state.meaning, f"job {self.job_id}" + (f": {state.wait}" if state.meaning == "queued" else "")
        )

    def settled(self, plan: Plan, guards: Sequence[GuardProxy]) -> Plan | None:
        return _dealt(plan, [guard.hello for guard in guards])

    def fate(self, ordinal: int) -> ExitCause:
        state = self._look(FRESH_S, TOLD_S)
        cause = self._cause(state)
        if state is not None and state.runs and not cause:
            return RUNS
        return ExitCause(True, self._words(state) + cause, final=state is None or (state.told and not state.runs))

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
        return self._queue.job(self.job_id, max(self._began, time.monotonic() - age_s), answer_s)

    def _words(self, state: JobState | None) -> str:
        if state is None:
            return f"Slurm does not list job {self.job_id} any more"
        return f"Slurm says of job {self.job_id}: {state}"

    def _cause(self, state: JobState | None) -> str:
        """What the state keeps back. Slurm is asked no more often for many guards than for one."""
        if state is None or not state.mute:
            return ""
        asked_at, of_state = self._why_asked
        if not self._why and (time.monotonic() - asked_at > FRESH_S or str(state) != of_state):
            self._why, self._why_asked = self._beside(), (time.monotonic(), str(state))
        return self._why or ("" if state.runs else self._tail())

    def _beside(self) -> str:
        """That it was preempted, or what Slurm told the script when `srun` failed: a lack of memory, for instance."""
        try:
            words = self._slurm.told_beside(self.job_id, self._comment)
        except SlurmError:  # it is an addition to what is known already
            words = ""
        return f": {words}" if words else ""

    def _tail(self) -> str:
        """What the script wrote last."""
        try:
            text = self._output.read_text(errors="replace")[-TAIL_BYTES:].strip() if self._output else ""
        except OSError:  # no file system that both see, or nothing was written
            text = ""
        return f"; its output ends with\n{text}" if text else ""


def _dealt(plan: Plan, hellos: Sequence[GuardHello | None]) -> Plan | None:
    given = [hello.devices for hello in hellos if hello is not None]
    return dealt(plan, given) if len(given) == len(hellos) else None


def _job_environment() -> dict[str, str]:
    """The user's environment, for the commands and for the job. Where modules are is in the script."""
    env = base_environment(os.environ, [])
    del env["PYTHONPATH"]
    return env


def _corrected(node: Node, wishes: SlurmOptions) -> Any:
    share, memory = node.share, wishes.mem_per_node
    return replace(
        share,
        cpus=share.cpus if wishes.cpus_per_node is None else wishes.cpus_per_node,
        mem=share.mem if memory is None else memory * MIB,
        gpus=share.gpus if wishes.n_gpus_per_node is None else wishes.n_gpus_per_node,
    )


def _portable(path: Sequence[str]) -> list[str]:
    """Folders of modules without those of this interpreter's installation, which another one cannot use."""
    own = tuple(str(Path(sysconfig.get_path(name))) for name in ("stdlib", "platstdlib"))
    theirs = ("site-packages", "dist-packages")
    return [
        folder
        for folder in path
        if not folder.startswith(own) and not folder.endswith(".zip") and not set(theirs) & set(Path(folder).parts)
    ]
