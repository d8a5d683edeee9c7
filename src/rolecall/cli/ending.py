"""Ends what is left of a run from outside, and proves it.

It signals only processes of this user that bear the run's id, or that its guards have noted, and has backends end only
what of this user does.
"""

from __future__ import annotations

import getpass
import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from rolecall.cli.client import NoAnswerError
from rolecall.cli.rundir import on_another_host
from rolecall.cli.runs import SelectedRun
from rolecall.guard import runtime
from rolecall.guard.claims import CLAIMS
from rolecall.guard.proc import send
from rolecall.guard.sweep import REAPER_NAME, RunProcess, end_cgroups, run_processes
from rolecall.placement.outside import Removal, is_private
from rolecall.placement.registry import PLACEMENTS
from rolecall.scheduler.run import STOPPED

KILL_MARGIN_S = 15.0  # beyond the grace: SIGKILL, and seeing everything dead
LEAVE_S = 3.0  # a guard that was asked, or a reaper whose guard was killed, is gone in milliseconds
KILL_S = 10.0  # after SIGKILL; only the kernel's uninterruptible sleep outlasts it
POLL_S = 0.02


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


def end_run(run: SelectedRun, grace_s: float) -> Ending:
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
    ending.allocations = _end_allocations(run)
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


def _say_who(run: SelectedRun) -> None:
    """Tells the controller, if there is one, what its workers will die of, and to start no others."""
    if run.directory is not None and not run.state.controller.ended:
        with suppress(OSError):  # a file system that is full, for instance
            who = f"`rolecall stop`, process {os.getpid()} of {getpass.getuser()} on {os.uname().nodename}"
            (run.directory.path / STOPPED).write_text(who)


def _ask_guards(run: SelectedRun, grace_s: float) -> tuple[dict[str, str], bool]:
    """Has all guards end their workers, at the same time; a stuck one is told by its table, at little cost."""

    def ask(guard_id: str) -> tuple[str, bool]:
        try:
            workers = [row.worker for row in run.client.table(guard_id)]
            run.client.kill(guard_id, workers, grace_s, grace_s + KILL_MARGIN_S)
        except NoAnswerError as e:
            return e.reason, False
        return f"ended {len(workers)} worker(s)", True

    ids = run.client.guard_ids()
    with ThreadPoolExecutor(max(1, len(ids))) as pool:
        answers = dict(zip(ids, pool.map(ask, ids), strict=True))
    words = {guard_id: said for guard_id, (said, _) in answers.items()}
    return words, bool(ids) and all(done for _, done in answers.values())


def _end_allocations(run: SelectedRun) -> Removal:
    """What of each backend's manager: one of them at the most has anything of a run."""
    removals = [placement.end_left(run.run_id, run.state) for placement in PLACEMENTS.values()]
    return next((removal for removal in removals if removal != Removal()), Removal())


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


def _clean(run: SelectedRun, folder: Path) -> str:
    """Removes cgroups, sockets that nobody listens on, and the directory when nobody is left in it."""
    end_cgroups(folder)
    parts = {*run.client.guard_ids(), *(file.parent.name for file in folder.glob(f"*/{CLAIMS}"))}
    gone = [runtime.clean(str(folder), guard_id) for guard_id in parts or ["none"]]
    return "removed" if gone[-1] else "kept"
