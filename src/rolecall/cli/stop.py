"""`rolecall stop`: ends a run from outside."""

from __future__ import annotations

import os
import sys
from dataclasses import asdict
from typing import Annotated

import typer

from rolecall.cli.ending import Ending, end_run
from rolecall.cli.rundir import on_another_host
from rolecall.cli.runs import SelectedRun, select_run
from rolecall.cli.terminal import FilerootOption, JsonOption, RunOption, print_json, remark
from rolecall.errors import RolecallError
from rolecall.guard.sweep import run_processes

NOT_CLEAN = 1


class UnconfirmedError(RolecallError):
    """Ending a run was not confirmed. Nothing was ended."""

    def __init__(self, run: str) -> None:
        self.run = run
        super().__init__(f"{run} was not ended: confirm, or pass --yes")


class ForeignRunError(RolecallError):
    """The run directory belongs to another user. Nothing was ended."""

    def __init__(self, path: str) -> None:
        self.path = path
        super().__init__(f"{path} belongs to another user; only that user can end the run")


def stop(
    run: RunOption = None,
    fileroot: FilerootOption = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    grace: Annotated[float, typer.Option(min=0, help="Seconds between SIGTERM and SIGKILL.")] = 5.0,
    json: JsonOption = False,
) -> None:
    """Ends all guards, workers and programs of a run, and its cluster jobs, and proves that none is left.

    Works when the controller or a guard is stuck or gone. Touches only processes and jobs of this user that bear the
    run's id; the controller is no such process: it lives on, and its calls fail with WorkerFailedError. Ends with 1
    when something could not be ended.

    Example: rolecall stop --run demo/t0 --yes
    """
    found = select_run(run, fileroot)
    if found.directory and found.directory.path.stat().st_uid != os.getuid():
        raise ForeignRunError(str(found.directory.path))
    controller = found.controller
    if not yes:
        _confirm(found, controller)
    ending = end_run(found, grace)
    if json:
        print_json({**asdict(ending), "run": found.name, "controller_pid": controller, "clean": ending.clean})
    else:
        _print(found, ending, controller)
    if not ending.clean:
        raise typer.Exit(NOT_CLEAN)


def _confirm(run: SelectedRun, controller: int | None) -> None:
    if not sys.stdin.isatty():
        raise UnconfirmedError(run.name)
    whose = f"controller {controller} lives" if controller else _nobody(run)
    question = f"End {run.name} ({whose}, {len(run_processes(run.run_id))} processes)?"
    if not typer.confirm(question, err=True):
        raise UnconfirmedError(run.name)


def _nobody(run: SelectedRun) -> str:
    """What is to be said of a controller that is not to be seen here."""
    there = run.state.controller
    if there.ended or not on_another_host(there.host):
        return "no controller"
    return f"its controller was on {there.host}, which cannot be seen from here"


def _print(run: SelectedRun, ending: Ending, controller: int | None) -> None:
    for guard, answer in ending.guards.items():
        print(f"guard {guard}: {answer}")
    for item in (*ending.ended, *ending.allocations.ended):
        print(f"ended {item}")
    for name in ending.allocations.left:
        remark(f"{name} is still there; see `{ending.allocations.advice}`")
    if ending.allocations.unknown:
        remark(f"whether the cluster still has anything of it is not known: {ending.allocations.unknown}")
    for item in ending.survivors:
        remark(f"still there after SIGKILL: {item}; it hangs in the kernel, see /proc/{item.split()[0]}/wchan")
    for item in ending.foreign:
        remark(f"left alone, since it belongs to another user: {item}")
    for host in ending.elsewhere:
        remark(f"guards on {host} were not reached; run the same command there, or end the controller")
    if controller:
        print(f"controller {controller} lives on without workers; end it with: kill {controller}")
    if ending.clean:
        was_there = ending.ended or ending.allocations.ended
        print(f"{run.name}: nothing is left" if was_there else f"{run.name}: nothing was running")
