"""`rolecall stop`: ends what is left of a run from outside, and proves it.

It signals only processes of this user that bear the run's id, or that its guards have noted, and has backends end only
what of this user does.
"""

from __future__ import annotations

import getpass
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

import typer

from rolecall.cli.client import NoAnswerError
from rolecall.cli.runs import FoundRun, on_another_host, select_run
from rolecall.cli.terminal import FilerootOption, JsonOption, RunOption, print_json, remark
from rolecall.errors import RolecallError, printable
from rolecall.guard import runtime
from rolecall.guard.claims import CLAIMS
from rolecall.guard.proc import send
from rolecall.guard.sweep import REAPER_NAME, RunProcess, end_cgroups, run_processes
from rolecall.placement.outside import Removal, is_private
from rolecall.placement.registry import PLACEMENTS
from rolecall.scheduler.run import STOPPED
from rolecall.transport.files import opener
from rolecall.transport.threads import at_once

NOT_CLEAN = 1
KILL_MARGIN_S = 15.0  # beyond the grace: SIGKILL, and seeing everything dead
LEAVE_S = 3.0  # a guard that was asked, or a reaper whose guard was killed, is gone in milliseconds
KILL_S = 10.0  # after SIGKILL; only the kernel's uninterruptible sleep outlasts it
POLL_S = 0.02


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
    if found.path and found.path.stat().st_uid != os.getuid():
        raise ForeignRunError(str(found.path))
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


def _confirm(run: FoundRun, controller: int | None) -> None:
    if not sys.stdin.isatty():
        raise UnconfirmedError(run.name)
    whose = f"controller {controller} lives" if controller else _nobody(run)
    question = f"End {run.name} ({whose}, {len(run_processes(run.run_id))} processes)?"
    if not typer.confirm(question, err=True):
        raise UnconfirmedError(run.name)


def _nobody(run: FoundRun) -> str:
    """What is to be said of a controller that is not to be seen here."""
    there = run.state.controller
    if there.ended or not on_another_host(there.host):
        return "no controller"
    return f"its controller was on {there.host}, which cannot be seen from here"


def _print(run: FoundRun, ending: Ending, controller: int | None) -> None:
    for guard, answer in ending.guards.items():
        print(printable(f"guard {guard}: {answer}"))
    for item in (*ending.ended, *ending.allocations.ended):
        print(printable(f"ended {item}"))
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


@dataclass
class Ending:
    """What was done.

    Attributes:
        guards: How each guard answered, by id.
        ended: `pid name (worker)` of every process that is gone now.
        survivors: The same of those that are not.
        foreign: Processes with the run's id that belong to other users; they were left alone.
        elsewhere: Hosts with guards of a run that has not ended; nothing is done there.
        allocations: What the run held with a cluster's manager; its end is that of guards elsewhere.
        runtime_dir: What became of the runtime directory: `removed`, `kept` or `none`.
    """

    run_id: str
    guards: dict[str, str] = field(default_factory=dict)
    ended: list[str] = field(default_factory=list)
    survivors: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)
    elsewhere: list[str] = field(default_factory=list)
    allocations: Removal = field(default_factory=Removal)
    runtime_dir: str = "none"

    @property
    def clean(self) -> bool:
        return self.allocations.clean and not (self.survivors or self.foreign or self.elsewhere)


def end_run(run: FoundRun, grace_s: float) -> Ending:
    """Asks the guards, then their reapers, has backends end allocations, then kills whoever is left, and looks again.

    Args:
        grace_s: Seconds that workers get between SIGTERM and SIGKILL.
    """
    ending = Ending(run.run_id)
    seen: dict[tuple[int, int], RunProcess] = {}

    folder = run.runtime_dir if is_private(run.runtime_dir) and run.runtime_dir.name == run.run_id else None

    def left() -> list[RunProcess]:
        found = [item for item in run_processes(run.run_id, runtime_dir=folder) if item.uid == os.getuid()]
        seen.update({item.process: item for item in found})
        return found

    _say_who(run)
    left()
    ending.guards, all_answered = _ask_guards(run, grace_s)
    if all_answered:
        for item in left():
            if item.stat.name == REAPER_NAME:  # it asks its guard, which ends what it owns and cleans up
                send(item.process, signal.SIGTERM)
    removals = [placement.end_left(run.run_id, run.state) for placement in PLACEMENTS.values()]
    ending.allocations = next((removal for removal in removals if removal != Removal()), Removal())  # one has it
    if not (all_answered and _gone(left, LEAVE_S)):
        # Reapers last: one whose guard is killed ends everything below it and cleans up, better than we can.
        _gone(left, LEAVE_S, kill_all_but=REAPER_NAME)
        _gone(left, KILL_S, kill_all_but="")
    remaining = left()
    state = run.state
    ending.survivors = [item.describe() for item in remaining]
    alive = {item.process for item in remaining}
    ending.ended = [item.describe() for key, item in seen.items() if key not in alive]
    ending.foreign = [f"{i.describe()} of uid {i.uid}" for i in run_processes(run.run_id) if i.uid != os.getuid()]
    if not ((ending.allocations.asked and ending.allocations.clean) or state.controller.ended):
        ending.elsewhere = sorted({guard.host for guard in state.guards if on_another_host(guard.host)})
    ending.runtime_dir = _clean(run, folder) if folder else "none"
    if not remaining:
        for placement in PLACEMENTS.values():
            placement.clean(run.run_id)
    return ending


def _say_who(run: FoundRun) -> None:
    """Tells the controller, if there is one, what its workers will die of, and to start no others."""
    if run.path is not None and not run.state.controller.ended:
        with suppress(OSError):  # a file system that is full, for instance
            who = f"`rolecall stop`, process {os.getpid()} of {_user()} on {os.uname().nodename}"
            with open(run.path / STOPPED, "w", opener=opener) as file:
                file.write(who)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # one without a name, as in many containers
        return f"uid {os.getuid()}"


def _ask_guards(run: FoundRun, grace_s: float) -> tuple[dict[str, str], bool]:
    """Has all guards end their workers, at the same time; a stuck one is told by its table, at little cost."""

    def ask(guard_id: str) -> tuple[str, bool]:
        try:
            workers = [row.worker for row in run.client.table(guard_id)]
            run.client.kill(guard_id, workers, grace_s, grace_s + KILL_MARGIN_S)
        except NoAnswerError as e:
            return e.reason, False
        return f"ended {len(workers)} worker(s)", True

    ids = run.client.guard_ids()
    answers = dict(zip(ids, at_once(ask, ids, len(ids)), strict=True))
    words = {guard_id: said for guard_id, (said, _) in answers.items()}
    return words, bool(ids) and all(done for _, done in answers.values())


def _gone(left: Callable[[], list[RunProcess]], patience: float, kill_all_but: str | None = None) -> bool:
    """Waits until nothing is left, and kills what is; False when `patience` passed."""
    deadline = time.monotonic() + patience
    while found := left():
        if time.monotonic() > deadline:
            return False
        for item in found:
            if kill_all_but is not None and item.stat.name != kill_all_but:
                send(item.process, signal.SIGKILL)
        time.sleep(POLL_S)
    return True


def _clean(run: FoundRun, folder: Path) -> str:
    """Removes cgroups, sockets that nobody listens on, and the directory when nobody is left in it."""
    end_cgroups(folder)
    parts = {*run.client.guard_ids(), *(file.parent.name for file in folder.glob(f"*/{CLAIMS}"))}
    gone = [runtime.clean(str(folder), guard_id) for guard_id in parts or ["none"]]
    return "removed" if gone[-1] else "kept"
