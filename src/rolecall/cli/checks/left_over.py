"""What outlived its run's controller: processes, and what runs hold with a cluster's manager."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Iterator
from operator import attrgetter
from pathlib import Path

from rolecall.cli.checks import listed
from rolecall.cli.rundir import RunDir, on_another_host
from rolecall.cli.runs import find_runs, selected
from rolecall.guard.claims import abandoned
from rolecall.guard.proc import Stat, ancestors, snapshot
from rolecall.guard.sweep import GUARD_NAME, RunProcess, run_processes
from rolecall.placement.outside import Finding, Left, Severity, error, info, ok, warning
from rolecall.placement.registry import PLACEMENTS
from rolecall.scheduler.run import private_root
from rolecall.tensors.shard import grouped

CHECK = "processes"
SHOWN = 8
ENDING_S = 2.0


def check_left_processes(fileroot: Path) -> Iterator[Finding]:
    """One finding per run with processes on this host."""
    findings = _look(fileroot)
    if any(finding.severity in (Severity.ERROR, Severity.WARNING) for finding in findings):
        time.sleep(ENDING_S)  # those of a run that has just ended are ending
        findings = _look(fileroot)
    yield from findings or [ok(CHECK, "no process of any run")]


def _look(fileroot: Path) -> list[Finding]:
    table = snapshot()
    runs = {selected(run).run_id: run for run in find_runs(fileroot)}
    findings = []
    own = [item for item in run_processes() if item.uid == os.getuid()]
    for run_id, items in grouped(own, attrgetter("run_id")).items():
        # A process below a guard is supervised, not left over.
        above = set[int]().union(*(ancestors(item.stat.pid, table) for item in items))
        guards = [table[pid] for pid in above if table[pid].name == GUARD_NAME]
        findings.append(_judge_processes(run_id, items, runs.get(run_id), guards))
    return findings


def _judge_processes(run_id: str, items: list[RunProcess], directory: RunDir | None, guards: list[Stat]) -> Finding:
    name = f"run {directory.name} (id {run_id})" if directory else f"run {run_id}"
    controller = directory.controller() if directory else None
    left_by = run_id if _controller_is_dead(run_id, directory) else ""
    stop = f"rolecall stop --run {run_id} --yes"
    shown = listed([item.describe() for item in items], SHOWN)
    stopped = [guard for guard in guards if guard.state in "Tt"]
    if stopped:
        seen = f"{name}: its guard {stopped[0].pid} is stopped and supervises nothing: {shown}"
        return error(CHECK, seen, "continue it (kill -CONT), or end the run", stop, left_by)
    if controller is not None:
        return ok(CHECK, f"{name}: {len(items)} processes, controller {controller} is running")
    if guards and directory is None:
        return info(CHECK, f"{name} has a guard, {guards[0].pid}; its run directory is under another fileroot: {shown}")
    if guards:
        advice = "if the controller is not on another host, the guard ends them when its lease expires; or end them now"
        return warning(
            CHECK, f"{name} has no controller here but {len(items)} process(es): {shown}", advice, stop, left_by
        )
    seen = f"{name} left {len(items)} process(es) without a {'controller' if directory else 'guard'}: {shown}"
    return error(CHECK, seen, "end them", stop, left_by)


def _controller_is_dead(run_id: str, directory: RunDir | None) -> bool:
    """For sure: one on another host, or of a run directory elsewhere, may live."""
    if directory is not None:
        return directory.controller() is None and not on_another_host(directory.known().controller.host)
    folder = private_root() / run_id
    return abandoned(folder) or not folder.exists()


def check_left_allocations(fileroot: Path) -> Iterator[Finding]:
    """One finding for each run that has any."""
    held = [(name, left) for name, placement in PLACEMENTS.items() for left in placement.left()]
    directories = {selected(run).run_id: run for run in find_runs(fileroot)} if held else {}
    for name, left in held:
        yield _judge_allocations(name, left, directories.get(left.run_id))


def _judge_allocations(check: str, left: Left, directory: RunDir | None) -> Finding:
    what = ", ".join(left.names)
    if directory is None:
        where = "with its directory under another fileroot, or replaced by a later one of its name"
        seen, advice = f"run {left.run_id}, {where}, has {what}", "end it by hand if it is none of yours"
        return info(check, seen, advice, left.command)
    if directory.controller() is not None:
        return ok(check, f"run {directory.name}: {what}, and its controller lives")
    if on_another_host(host := directory.known().controller.host):
        return info(check, f"run {directory.name}: {what}, and a controller on {host}")
    advice = "what waits would end as soon as it starts; end it now"
    stop = f"rolecall stop --run {shlex.quote(str(directory.path))} --yes"
    seen = f"run {directory.name} has no controller any more but left {what}"
    return warning(check, seen, advice, stop, left.run_id)
