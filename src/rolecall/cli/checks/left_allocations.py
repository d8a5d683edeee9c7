"""What runs hold with a cluster's manager although their controller is gone."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

from rolecall.cli.rundir import RunDir, on_another_host
from rolecall.cli.runs import find_runs, selected, state_of
from rolecall.placement.outside import Finding, Left, info, ok, warning
from rolecall.placement.registry import PLACEMENTS


def check_left_allocations(fileroot: Path) -> Iterator[Finding]:
    """One finding for each run that has any."""
    held = [(name, left) for name, placement in PLACEMENTS.items() for left in placement.left()]
    directories = {selected(run).run_id: run for run in find_runs(fileroot)} if held else {}
    for name, left in held:
        yield _judge(name, left, directories.get(left.run_id))


def _judge(check: str, left: Left, directory: RunDir | None) -> Finding:
    what = ", ".join(left.names)
    if directory is None:
        where = "with its directory under another fileroot, or replaced by a later one of its name"
        return info(
            check, f"run {left.run_id}, {where}, has {what}", "end it by hand if it is none of yours", left.command
        )
    state = state_of(directory)
    if directory.controller(state) is not None:
        return ok(check, f"run {directory.name}: {what}, and its controller lives")
    if on_another_host(state.controller.host):
        return info(check, f"run {directory.name}: {what}, and a controller on {state.controller.host}")
    advice = "what waits would end as soon as it starts; end it now"
    stop = f"rolecall stop --run {shlex.quote(str(directory.path))} --yes"
    return warning(check, f"run {directory.name} has no controller any more but left {what}", advice, stop)
