"""`rolecall ps` and `rolecall top`: the roles and workers of a run, their resource use and calls, or all runs."""

from __future__ import annotations

import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Group, RenderableType
from rich.live import Live as Screen
from rich.text import Text

from rolecall.cli.client import NoAnswerError
from rolecall.cli.runs import FoundRun, age, changed, find_runs, root_of, select_run
from rolecall.cli.terminal import (
    FilerootOption,
    JsonOption,
    RunOption,
    cell,
    console,
    format_duration,
    print_json,
    remark,
    table,
    table_of,
)
from rolecall.cli.view import RunView, WorkerView, view
from rolecall.guard.sweep import run_processes
from rolecall.transport.threads import at_once

COLUMNS = "worker state pid host devices ports uptime_s cpu_s rss_bytes calls pending note"
RUN_COLUMNS = ("RUN", "STATE", "CONTROLLER", "WORKERS", "CHANGED", "DIRECTORY")
RUN_FIELDS = ("name", "state", "controller_pid", "workers", "changed", "run_dir")
ALARMING = ("failed", "orphaned", "ended")
MAX_CONCURRENT = 32
ENDED = "the run has ended; showing the last known state"
LOAD_COLUMNS = "worker state pid cpu_percent rss_bytes calls_per_s pending waiting store_bytes open_fds ports note"


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
    root = root_of(fileroot)
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


@dataclass
class Load:
    """The load of one worker. None for what is unknown: it has ended, does not answer, or hosts no engines."""

    worker: str
    state: str
    pid: int | None
    cpu_percent: float | None
    rss_bytes: int | None
    calls_per_s: float | None
    pending: int | None
    waiting: int | None = None
    store_bytes: int | None = None
    cache_bytes: int | None = None
    open_fds: int | None = None
    ports: int = 0
    note: str = ""


def _rate(name: str, now: WorkerView, before: WorkerView | None, seconds: float) -> float | None:
    """How fast a number of a worker grows; None where it is unknown, or of another process."""
    grown = [getattr(now, name), getattr(before, name) if before and before.pid == now.pid else None]
    return None if None in grown or grown[0] < grown[1] else (grown[0] - grown[1]) / seconds


def top(
    run: RunOption = None,
    fileroot: FilerootOption = None,
    once: Annotated[bool, typer.Option("--once", help="Print one table and exit.")] = False,
    interval: Annotated[float, typer.Option(min=0.1, help="Seconds between two samples.")] = 1.0,
    json: JsonOption = False,
) -> None:
    """Shows CPU, memory, calls per second, waiting calls and stored tensors of each worker, until Ctrl-C.

    With --json or --once it takes two samples, `--interval` apart, and prints once. For a run that has ended it shows
    the last known state.

    Example: rolecall top --once
    """
    sampler = Sampler(select_run(run, fileroot))
    if json or once or not sys.stdout.isatty() or console().is_dumb_terminal:
        _print_loads(sampler, interval, json)
    else:
        _refresh(sampler, interval)


class Sampler:
    """Samples a run and keeps the previous sample."""

    def __init__(self, run: FoundRun) -> None:
        self._run, self._at, self.seen = run, time.monotonic(), view(run)

    def sample(self) -> list[Load]:
        """The loads since the last sample."""
        before, then = {worker.worker: worker for worker in self.seen.workers}, self._at
        self.seen, self._at = view(self._run), time.monotonic()
        load = lambda w: self._load(w, before.get(w.worker), self._at - then)  # noqa: E731
        return at_once(load, self.seen.workers, MAX_CONCURRENT)

    def _load(self, worker: WorkerView, before: WorkerView | None, seconds: float) -> Load:
        cpu, calls = (_rate(name, worker, before, seconds) for name in ("cpu_s", "calls"))
        percent = None if cpu is None else 100 * cpu
        found = Load(worker.worker, worker.state, worker.pid, percent, worker.rss_bytes, calls, worker.pending)
        found.ports, found.note = len(worker.ports), worker.reason
        if worker.processes and (worker.command is None or self._run.client.serves(worker.worker)):
            try:
                metrics = self._run.client.worker(worker.worker)
            except NoAnswerError as e:
                found.note = e.reason
                return found
            found.waiting, found.open_fds = metrics.get("calls_waiting"), metrics.get("open_fds")
            found.store_bytes = metrics.get("store", {}).get("bytes")
            found.cache_bytes = metrics.get("fetch", {}).get("cache", {}).get("bytes")
        return found

    @property
    def living(self) -> bool:
        return self.seen.state != "ended"


def _print_loads(sampler: Sampler, interval: float, as_json: bool) -> None:
    if sampler.living:
        time.sleep(interval)
    loads = sampler.sample()
    if not sampler.living:
        remark(ENDED)
    if as_json:
        run = {name: value for name, value in asdict(sampler.seen).items() if name != "guards"}
        print_json({**run, "workers": [asdict(each) for each in loads]})
    else:
        console().print(_screen(sampler.seen, loads))


def _refresh(sampler: Sampler, interval: float) -> None:
    with Screen(_screen(sampler.seen, sampler.sample()), console=console(), auto_refresh=False, screen=False) as screen:
        while sampler.living:
            time.sleep(interval)
            screen.update(_screen(sampler.seen, sampler.sample()), refresh=True)
    remark(ENDED)


def _screen(seen: RunView, loads: list[Load]) -> RenderableType:
    return Group(Text(headline(seen)), table_of(LOAD_COLUMNS, loads) if loads else Text("no workers"))
