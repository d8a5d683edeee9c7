"""Slurm: one job for each role, in it one guard on each node. It runs no command itself and knows no script's text."""

from __future__ import annotations

import logging
import os
import socket
import sys
import sysconfig
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import msgspec

from rolecall.errors import SlurmError, WorkerConfigurationError, WorkerCreationError
from rolecall.placement.allocations import ClusterPlacement
from rolecall.placement.base import PlacementContext
from rolecall.placement.launching import current_folder, python_path
from rolecall.placement.outside import Finding, Left, Removal
from rolecall.placement.plan import Plan, base_environment, separate_slots
from rolecall.placement.slurm import outside
from rolecall.placement.slurm.allocation import SlurmAllocation
from rolecall.placement.slurm.commands import Slurm
from rolecall.placement.slurm.options import SlurmOptions, with_defaults
from rolecall.placement.slurm.packing import MIB, Node, place
from rolecall.placement.slurm.script import Surroundings, filled, job_comment, job_name, render
from rolecall.protocol.guard_config import GuardConfig
from rolecall.protocol.message import to_plain
from rolecall.protocol.state import RunState
from rolecall.transport.address import address_toward
from rolecall.types import Job

log = logging.getLogger("rolecall")
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

    name = "slurm"
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
        return outside.end_jobs(run_id, state, surely=state.scheduler == cls.name and not state.controller.ended)

    @classmethod
    def left(cls) -> Iterable[Left]:
        return outside.left_jobs()

    @classmethod
    def findings(cls) -> Iterable[Finding]:
        return outside.check_slurm()


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
