"""AReaL's jobs as rolecall's. Pure."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

import rolecall

NAME_RESOLVING = "AREAL_NAME_RESOLVE"  # in a worker's environment: the fields of AReaL's NameResolveConfig, as JSON
ENGINE_SERVER = "areal.infra.rpc.rpc_server"
# AReaL's own default; its `$PWD` is for a shell, and the rest is what rolecall does anyway.
DEFAULT_SRUN = "--unbuffered --mpi=pmi2 -K --chdir $PWD"
ON_SLURM = ("nodelist", "exclude", "additional_bash_cmds", "container_type")


def job_of(job: Any, env: dict[str, str], arguments: Sequence[str], slurm: bool) -> rolecall.Job:
    """The job in rolecall's words.

    Args:
        job: AReaL's.
        env: Variables of every worker.
        arguments: What programs among the workers are started with.
        slurm: Whether to read the fields that only Slurm has a use for.
    """
    strategy = rolecall.SchedulingStrategy(
        str(getattr(job.scheduling_strategy.type, "value", job.scheduling_strategy.type)),  # type: ignore[arg-type]
        job.scheduling_strategy.target,
        job.scheduling_strategy.fork,
    )
    if strategy.type == "colocation" and not strategy.fork:
        return rolecall.Job(job.role, job.replicas, scheduling_strategy=strategy)
    specs = [_spec(task, env, arguments, slurm) for task in job.tasks] or [rolecall.SchedulingSpec(env_vars=env)]
    return rolecall.Job(job.role, job.replicas, specs, strategy)


def _spec(task: Any, env: dict[str, str], arguments: Sequence[str], slurm: bool) -> rolecall.SchedulingSpec:
    fields: dict[str, Any] = {name: getattr(task, name) for name in ("cpu", "gpu", "mem", "port_count", "task_type")}
    if slurm:
        fields |= {name: getattr(task, name) for name in ON_SLURM}
        if task.container_type != "none":
            fields |= {"image": task.image, "mount": task.mount}
        if task.srun_additional_args != DEFAULT_SRUN:
            fields["srun_additional_args"] = task.srun_additional_args
    if task.ray_placement_strategy is not None:
        fields["ray_placement_strategy"] = task.ray_placement_strategy
    if task.cmd and ENGINE_SERVER not in task.cmd:
        words = ["{python}" if word in ("python", "python3") else word for word in shlex.split(task.cmd)]
        fields |= program(words, arguments)
    return rolecall.SchedulingSpec(**fields, env_vars=env | {k: str(v) for k, v in task.env_vars.items()})


def program(command: Sequence[str], arguments: Sequence[str]) -> dict[str, Any]:
    """A program that is started as AReaL starts its servers, and when it is ready."""
    identity = ["--host", "{host}", "--port", "{port}", "--role", "{role}", "--worker-index", "{index}"]
    return {"cmd": [*command, *identity, *arguments], "ready": "/health"}
