"""What a worker's environment is: pure functions from the guard's base, the slot and the spec."""

from collections.abc import Mapping

from rolecall.protocol.environment import FOREIGN, GUARD, PREFIX, RUN, WORKER
from rolecall.protocol.guard import ProcessSpec

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
_NOT_INHERITED = (PREFIX, *FOREIGN)
_COLD = ("LD_", "PYTHON")  # read by the loader and the interpreter when they start: a fork is too late for them


def base(own: Mapping[str, str], configured: Mapping[str, str]) -> dict[str, str]:
    """The base of every worker: the host's own environment without others' names, then the configured one."""
    kept = {name: value for name, value in own.items() if not name.startswith(_NOT_INHERITED)}
    return kept | dict(configured)


def marked(env: Mapping[str, str], run_id: str, guard_id: str, worker_id: str) -> dict[str, str]:
    """The environment with the three names that everything below a guard bears."""
    return dict(env) | {RUN: run_id, GUARD: guard_id, WORKER: worker_id}


def thread_counts(env: Mapping[str, str], cores: int, host_cores: int) -> dict[str, str]:
    """Thread counts that the user has not set: the slot's cores, never more than the host's."""
    if cores < 1:
        return {}
    return {name: str(min(cores, host_cores)) for name in THREADS if name not in env}


def own_env(spec: ProcessSpec, target: Mapping[str, str] | None) -> dict[str, str]:
    """The recorded part of a worker's environment: its target's part, its own devices, then the spec's, which wins."""
    slot = {spec.device_var: ",".join(spec.devices)} if target is None or spec.devices else {}
    inherited = dict(target or {})
    return inherited | slot | spec.env


def needs_cold_start(env: Mapping[str, str], template: Mapping[str, str]) -> str:
    """Names the first variable that a fork of the template cannot give; empty when there is none."""
    names = sorted(name for name in env.keys() | template.keys() if name.startswith(_COLD))
    return next((name for name in names if env.get(name) != template.get(name)), "")


def thread_limit(env: Mapping[str, str], cores: int, host_cores: int) -> int:
    """Threads for a library that has read its variables before the fork."""
    value = env.get("OMP_NUM_THREADS", "").split(",")[0]
    return int(value) if value.isdigit() and int(value) > 0 else min(cores or host_cores, host_cores)
