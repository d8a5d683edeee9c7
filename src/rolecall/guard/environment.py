"""Computes parts of a worker's environment from its target's, the slot and the spec. Pure."""

import os
from collections.abc import Mapping

from rolecall.protocol.environment import inheritable
from rolecall.protocol.guard import ProcessSpec

HOST_CORES = len(os.sched_getaffinity(0))
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
_READ_AT_EXEC = ("LD_", "PYTHON")  # by the loader and the interpreter; setting them after a fork has no effect


def thread_counts(env: Mapping[str, str], cores: int) -> dict[str, str]:
    """Thread counts for the variables that are not set: the slot's cores, at most the host's."""
    return {name: str(min(cores, HOST_CORES)) for name in THREADS if cores > 0 and name not in env}


def recorded_env(spec: ProcessSpec, target: Mapping[str, str] | None) -> dict[str, str]:
    """The part of a worker's environment that its forks inherit: its target's, then its devices, then its spec's."""
    slot = {spec.device_var: ",".join(spec.devices)} if target is None or spec.devices else {}
    return {**inheritable(target or {}), **slot, **spec.env}


def needs_cold_start(env: Mapping[str, str], template: Mapping[str, str]) -> str:
    """Names the first variable that a fork of the template cannot have; empty when there is none."""
    names = sorted(name for name in env.keys() | template.keys() if name.startswith(_READ_AT_EXEC))
    return next((name for name in names if env.get(name) != template.get(name)), "")


def thread_limit(env: Mapping[str, str], cores: int) -> int:
    """The thread count for libraries that read their variables before the fork."""
    value = env.get("OMP_NUM_THREADS", "").split(",")[0]
    return int(value) if value.isdigit() and int(value) > 0 else min(cores or HOST_CORES, HOST_CORES)
