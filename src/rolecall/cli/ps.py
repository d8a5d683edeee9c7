"""`rolecall ps`: the roles and workers of a run, or all runs."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from rolecall.cli.runs import DEFAULT_FILEROOT, FoundRun, age, changed, find_runs, select_run
from rolecall.cli.terminal import (
    FilerootOption,
    JsonOption,
    RunOption,
    cell,
    console,
    format_duration,
    print_json,
    table,
    table_of,
)
from rolecall.cli.view import RunView, view
from rolecall.guard.sweep import run_processes

COLUMNS = "worker state pid host devices ports uptime_s cpu_s rss_bytes calls pending note"
RUN_COLUMNS = ("RUN", "STATE", "CONTROLLER", "WORKERS", "CHANGED", "DIRECTORY")
RUN_FIELDS = ("name", "state", "controller_pid", "workers", "changed", "run_dir")
ALARMING = ("failed", "orphaned", "ended")


def ps(
    run: RunOption = None,
    fileroot: FilerootOption = None,
    every: Annotated[bool, typer.Option("--all", "-a", help="List all runs instead of one run's workers.")] = False,
    json: JsonOption = False,
) -> None:
    """Shows the workers of a run: state, process, host, devices, ports, resource use, calls.

    It also works after the controller has ended, and then shows the last known state and how each worker ended.

    Example: rolecall ps --run demo/t0 --json
    """
    if every:
        return _print_runs(fileroot, json)
    seen = view(select_run(run, fileroot))
    if json:
        print_json(asdict(seen))
    else:
        _print(seen)


def _print(seen: RunView) -> None:
    out = console()
    out.print(headline(seen), highlight=False, markup=False)
    for guard in seen.guards:
        if guard.state != "running" and (guard.state != "gone" or seen.state == "running"):
            out.print(
                f"guard {guard.id} (pid {guard.pid}) is {guard.state}: {guard.why}", highlight=False, markup=False
            )
    for words in seen.waiting.values():
        out.print(words, highlight=False, markup=False)
    styles = ["red" if worker.state in ALARMING and seen.state != "ended" else "" for worker in seen.workers]
    out.print(table_of(COLUMNS, seen.workers, styles) if seen.workers else "no workers")


def headline(seen: RunView) -> str:
    """One line about a run and its controller."""
    controller = f"controller {seen.controller_pid or '?'} {seen.controller}"
    advice = f"; end it with: rolecall stop --run {seen.run_id}" if seen.state == "orphaned" else ""
    return f"{seen.name} {seen.state} (id {seen.run_id or 'unknown'}, {controller}){advice}"


def _print_runs(fileroot: Path | None, as_json: bool) -> None:
    root = (fileroot or DEFAULT_FILEROOT).expanduser().absolute()
    rows = [_run_row(run) for run in find_runs(root, elsewhere=fileroot is None)]
    if as_json:
        return print_json(rows)
    shown = [{**row, "changed": f"{format_duration(age(row['changed']))} ago"} for row in rows]
    cells = [[cell(name, row[name]) for name in RUN_FIELDS] for row in shown]
    console().print(table(RUN_COLUMNS, cells) if cells else f"no runs under {root}")


def _run_row(run: FoundRun) -> dict[str, Any]:
    pid, state = run.controller, run.state
    left = run.run_id != "" and any(run_processes(run.run_id))
    return {
        "name": run.name,
        "run_id": run.run_id,
        "state": "running" if pid else "orphaned" if left or run.running else "ended",
        "controller_pid": pid,
        "scheduler": state.scheduler,
        "workers": len(state.workers()),
        "changed": changed(run.path or run.runtime_dir),
        "run_dir": str(run.path),
    }
