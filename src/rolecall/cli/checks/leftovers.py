"""Processes that outlived their run's controller."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from rolecall.cli.census import Marked, marked
from rolecall.cli.checks.finding import Finding, error, ok, warning
from rolecall.cli.live import Live, listening
from rolecall.cli.rundir import BrokenStateError, RunDir, State
from rolecall.cli.runs import chosen, find_runs
from rolecall.schedulers.run import private_root

CHECK = "processes"
SHOWN = 8


def check_leftovers(fileroot: Path) -> Iterator[Finding]:
    """One finding for each run that has processes here."""
    groups: dict[str, list[Marked]] = defaultdict(list)
    for item in marked():
        if item.uid == os.getuid():
            groups[item.run_id].append(item)
    directories = {chosen(run).run_id: run for run in find_runs(fileroot)}
    for run_id, items in groups.items():
        yield _judge(run_id, items, directories.get(run_id))
    if not groups:
        yield ok(CHECK, "no process of any run")


def _judge(run_id: str, items: list[Marked], directory: RunDir | None) -> Finding:
    name = f"run {directory.name} (id {run_id})" if directory else f"run {run_id}"
    controller = directory.controller(_state(directory)) if directory else None
    if controller is not None:
        return ok(CHECK, f"{name}: {len(items)} processes, controller {controller} lives")
    shown = ", ".join(item.describe() for item in items[:SHOWN]) + (" ..." if len(items) > SHOWN else "")
    stop = f"rolecall stop --run {run_id} --yes"
    live = Live(private_root() / run_id)
    if any(listening(live.guard_socket(guard)) for guard in live.guard_ids()):
        advice = "a guard of it lives and will end them, unless its controller is on another host; or end them now"
        return warning(CHECK, f"{name} has no controller here but {len(items)} process(es): {shown}", advice, stop)
    return error(CHECK, f"{name} has no controller but left {len(items)} process(es): {shown}", "end them", stop)


def _state(directory: RunDir) -> State:
    try:
        return directory.state()
    except BrokenStateError:
        return State()
