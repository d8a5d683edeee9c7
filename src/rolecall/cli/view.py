"""A run as the commands show it: what guards say, else what `/proc` shows, else what the run directory last said."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rolecall.cli.client import NoAnswerError
from rolecall.cli.processes import GUARD_NAME, RunProcess, run_processes, usage
from rolecall.cli.rundir import on_another_host
from rolecall.cli.runs import SelectedRun, state_of
from rolecall.errors import describe_exit
from rolecall.guard.runtime import page_path
from rolecall.protocol.progress import SIZE, Counters, parse
from rolecall.protocol.state import RunState, WorkerState

Rows = dict[str, dict[str, Any]]  # guards' tables by worker


@dataclass
class WorkerView:
    """One worker. None stands for what cannot be known any more."""

    worker: str
    state: str
    pid: int | None
    host: str
    guard: str
    target: str | None
    devices: list[str]
    ports: list[int]
    command: list[str] | None
    log: str
    uptime_s: float | None = None
    cpu_s: float | None = None
    rss_bytes: int | None = None
    processes: int = 0
    calls: int | None = None
    pending: int | None = None
    reason: str = ""

    @property
    def role(self) -> str:
        return self.worker.rpartition("/")[0]


@dataclass
class GuardView:
    id: str
    pid: int | None
    host: str
    state: str
    why: str = ""


@dataclass
class RunView:
    """A run at one moment. `state` is `running`, `orphaned` (no controller, but processes) or `ended`."""

    name: str
    run_id: str
    run_dir: str
    state: str
    controller_pid: int | None
    controller: str
    scheduler: str = ""
    guards: list[GuardView] = field(default_factory=list)
    workers: list[WorkerView] = field(default_factory=list)


def view(run: SelectedRun) -> RunView:
    """Looks at a run. Guards are asked with a short patience; whoever does not answer is described from outside."""
    state = state_of(run.directory) if run.directory else RunState()
    processes = run_processes(run.run_id) if run.run_id else []
    pid = run.directory.controller(state) if run.directory else None
    guards, rows = _ask_guards(run, state, processes)
    workers = _Workers(run, state, processes, rows).views()
    return RunView(
        name=run.name,
        run_id=run.run_id,
        run_dir=str(run.directory.path) if run.directory else "",
        state="running" if pid else "orphaned" if processes or _any_answers(guards) else "ended",
        controller_pid=pid or state.controller.pid or None,
        controller=_controller(state, pid),
        scheduler=state.scheduler,
        guards=guards,
        workers=workers,
    )


def _controller(state: RunState, pid: int | None) -> str:
    """`running`, `ended`, `gone` (without having ended its run), or on which other host it was."""
    if pid or state.controller.ended:
        return "running" if pid else "ended"
    host = state.controller.host
    return f"on {host}" if on_another_host(host) else "gone"


def _any_answers(guards: list[GuardView]) -> bool:
    return any(guard.state == "running" for guard in guards)


def _ask_guards(run: SelectedRun, state: RunState, processes: list[RunProcess]) -> tuple[list[GuardView], Rows]:
    known = {guard.id: guard for guard in state.guards}
    alive = {item.guard_id for item in processes if item.stat.name == GUARD_NAME}
    views: list[GuardView] = []
    rows: Rows = {}
    for guard_id in sorted({*known, *run.client.guard_ids()}):
        said = known.get(guard_id)
        found = GuardView(guard_id, said.pid if said else None, said.host if said else "", "running")
        try:
            for row in run.client.table(guard_id):
                rows[row["worker"]] = {**row, "guard": guard_id}
        except NoAnswerError as e:
            other_host = said is not None and on_another_host(said.host)
            found.state = "stuck" if guard_id in alive else "on another host" if other_host else "gone"
            found.why = e.reason
        views.append(found)
    return views, rows


class _Workers:
    """Puts the sources together, worker by worker."""

    def __init__(self, run: SelectedRun, state: RunState, processes: list[RunProcess], rows: Rows) -> None:
        self._run, self._rows = run, rows
        self._written = {worker.id: worker for worker in state.workers()}
        self._ended = state.controller.ended
        self._events = list(run.directory.events()) if run.directory else []
        self._processes: dict[str, list[RunProcess]] = defaultdict(list)
        for item in processes:
            if item.worker:
                self._processes[item.worker].append(item)

    def views(self) -> list[WorkerView]:
        names = dict.fromkeys([*self._written, *self._rows, *self._processes])
        return [self._view(name) for name in names]

    def _view(self, name: str) -> WorkerView:
        said, row = self._written.get(name) or WorkerState(id=name), self._rows.get(name, {})
        pid = row.get("pid") or said.pid or None
        made = WorkerView(
            worker=name,
            state=self._state(name, said),
            pid=pid,
            host=said.host,
            guard=row.get("guard") or said.guard,
            target=said.target or row.get("target"),
            devices=said.devices or row.get("devices") or [],
            ports=[int(port) for port in row.get("ports") or said.ports],
            command=said.command or row.get("command"),
            log=said.log or row.get("log_path") or "",
        )
        if made.state in ("ended", "failed"):
            made.reason = self._reason(name, pid)
        self._measure(made)
        return made

    def _state(self, name: str, said: WorkerState) -> str:
        if name in self._rows:
            state = str(self._rows[name]["state"])
            return "running" if state == "ready" else state
        if self._processes.get(name):
            return "orphaned" if not self._rows and self._controller_gone() else "running"
        if on_another_host(said.host) and not self._ended:
            return f"{said.state} (last known)"
        return "failed" if said.state == "failed" else "ended"

    def _controller_gone(self) -> bool:
        directory = self._run.directory
        return directory is None or directory.controller(RunState()) is None

    def _measure(self, made: WorkerView) -> None:
        items = self._processes.get(made.worker)
        if not items:
            return
        used = usage(items)
        made.cpu_s, made.rss_bytes, made.processes = used.cpu_s, used.rss_bytes, used.processes
        own = [item for item in items if item.stat.pid == made.pid]
        made.uptime_s = own[0].uptime_s if own else None
        counters = read_page(self._run.runtime_dir, made.guard or items[0].guard_id, made.worker)
        if counters is not None and counters.heartbeat:
            made.calls, made.pending = counters.ended, max(0, counters.begun - counters.ended)

    def _reason(self, name: str, pid: int | None) -> str:
        """The newest report of its own end, else of its guard's."""
        own = [e for e in self._events if e.get("event") == "exited" and (e.get("worker"), e.get("pid")) == (name, pid)]
        if own:
            how = describe_exit(own[-1].get("exit_code"), own[-1].get("signal"))
            return f"{how}: {own[-1]['reason']}" if own[-1].get("reason") else how
        lost = [event for event in self._events if event.get("event") == "guard_lost"]
        if lost:
            return f"ended with its guard: {lost[-1].get('reason', '')}"
        return "ended with the run" if self._ended else "ended with the controller"


def read_page(runtime_dir: Path, guard_id: str, worker_id: str) -> Counters | None:
    """A worker's progress page, which it writes even while nobody can ask it anything."""
    try:
        with Path(page_path(str(runtime_dir), guard_id, worker_id)).open("rb") as file:
            return parse(file.read(SIZE))
    except OSError:
        return None
