"""What a guard is told before it can ask anybody, and the environment that its process is started with."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from rolecall.errors import WorkerConfigurationError
from rolecall.guard.proc import identify
from rolecall.protocol.guard_config import GuardConfig
from rolecall.scheduler.calls import main_path
from rolecall.scheduler.run import Run
from rolecall.transport.hosts import this_host


def guard_config(
    run: Run,
    name: str,
    *,
    controller: list[str],
    lease_s: float,
    preload: list[str],
    tensor_backend: str,
    ip: str = "",
) -> GuardConfig:
    """The configuration of a guard, or of several that tell themselves apart.

    Args:
        name: Id of the guard.
        controller: Addresses under which the controller listens.
        ip: Address of the guard's host; empty where only the guard can know.
    """
    me = identify(os.getpid())
    assert me is not None
    return GuardConfig(
        run_id=run.run_id,
        guard_id=name,
        token=run.token,
        controller=controller,
        lease_s=lease_s,
        ip=ip,
        run_dir=str(run.run_dir),
        runtime_dir=str(run.runtime_dir),
        preload=preload,
        cwd=current_folder(),
        sys_path=python_path(),
        main_path=main_path() or "",
        controller_host=this_host(),
        controller_pid=me.pid,
        controller_start=me.start,
        tensor_backend=tensor_backend,
    )


def python_path() -> list[str]:
    """Where the controller finds modules; `""` (the current folder) by name, since workers must find the same."""
    return list(dict.fromkeys(p or current_folder() for p in sys.path))


def current_folder() -> str:
    """The folder that workers start in.

    Raises:
        WorkerConfigurationError: It was deleted.
    """
    try:
        return str(Path.cwd())
    except FileNotFoundError as e:
        what = "the current folder was deleted"
        raise WorkerConfigurationError(what, None, "change to one that is there; workers start in it too") from e
