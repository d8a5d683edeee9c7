"""A run as the commands show it: what guards say, else what `/proc` shows, else what the run directory last said."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path

from rolecall.cli.client import NoAnswerError
from rolecall.cli.runs import FoundRun, on_another_host
from rolecall.errors import describe_exit
from rolecall.guard.proc import TICKS, read_text
from rolecall.guard.runtime import page_path
from rolecall.guard.sweep import GUARD_NAME, RunProcess, run_processes
from rolecall.protocol.guard import WorkerRow
from rolecall.protocol.progress import SIZE, parse
from rolecall.protocol.state import GuardState, RunState, WorkerState
from rolecall.scheduler.run import STOPPED
from rolecall.tensors.shard import grouped

Rows = dict[str, tuple[str, WorkerRow]]  # guards' tables: by worker, with the guard's id


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

    @property
    def note(self) -> str:
        return self.reason or (f"in {self.target}" if self.target else "")


@dataclass
class GuardView:
    id: str
    pid: int | None
    host: str
    state: str
    why: str = ""


@dataclass
class RunView:
    """A run at one moment. `state` is `running`, `orphaned` (no controller, but processes) or `ended`.

    Attributes:
        waiting: By role that waits for its place in a cluster, why.
    """

    name: str
    run_id: str
    run_dir: str
    state: str
    controller_pid: int | None
    controller: str
    scheduler: str = ""
    guards: list[GuardView] = field(default_factory=list)
    workers: list[WorkerView] = field(default_factory=list)
    waiting: dict[str, str] = field(default_factory=dict)


def view(run: FoundRun) -> RunView:
    """Looks at a run. Guards are asked with a short patience; whoever does not answer is described from outside."""
    state, pid = run.state, run.controller
    processes = run_processes(run.run_id) if run.run_id else []
    guards, rows = _ask_guards(run, state, processes)
    answers = any(guard.state == "running" for guard in guards)
    return RunView(
        name=run.name,
        run_id=run.run_id,
        run_dir=str(run.path or ""),
        state="running" if pid else "orphaned" if processes or answers else "ended",
        controller_pid=pid or state.controller.pid or None,
        controller=_controller(state, pid),
        scheduler=state.scheduler,
        guards=guards,
        workers=_Workers(run, state, pid, processes, rows).views(),
        waiting=state.waiting if pid else {},
    )


def _controller(state: RunState, pid: int | None) -> str:
    """`running`, `ended`, `gone` (without having ended its run), or on which other host it was."""
    if pid or state.controller.ended:
        return "running" if pid else "ended"
    host = state.controller.host
    return f"on {host}" if on_another_host(host) else "gone"


def _ask_guards(run: FoundRun, state: RunState, processes: list[RunProcess]) -> tuple[list[GuardView], Rows]:
    known = {guard.id: guard for guard in state.guards}
    alive = {item.guard_id for item in processes if item.stat.name == GUARD_NAME}
    views: list[GuardView] = []
    rows: Rows = {}
    for guard_id in sorted({*known, *run.client.guard_ids()}):
        said = known.get(guard_id) or GuardState(id=guard_id)
        found = GuardView(guard_id, said.pid or None, said.host, "running")
        try:
            rows |= {row.worker: (guard_id, row) for row in run.client.table(guard_id)}
        except NoAnswerError as e:
            found.state = "stuck" if guard_id in alive else "on another host" if on_another_host(said.host) else "gone"
            found.why = e.reason
        views.append(found)
    return views, rows


class _Workers:
    """Puts the sources together, worker by worker."""

    def __init__(
        self, run: FoundRun, state: RunState, controller: int | None, processes: list[RunProcess], rows: Rows
    ) -> None:
        self._run, self._rows, self._controller = run, rows, controller
        self._written = {worker.id: worker for worker in state.workers()}
        self._ended = state.controller.ended
        self._events = run.events
        self._processes = grouped((item for item in processes if item.worker), attrgetter("worker"))

    def views(self) -> list[WorkerView]:
        return [self._view(name) for name in dict.fromkeys([*self._written, *self._rows, *self._processes])]

    def _view(self, name: str) -> WorkerView:
        guard, row = self._rows.get(name, ("", None))
        said = self._written.get(name) or _as_written(name, row)
        made = WorkerView(
            worker=name,
            state=self._state(said, row),
            pid=(row and row.pid) or said.pid or None,
            host=said.host,
            guard=guard or said.guard,
            target=said.target,
            devices=said.devices,
            ports=row.ports if row else [int(port) for port in said.ports],
            command=said.command,
            log=said.log,
        )
        if made.state in ("ended", "failed"):
            made.reason = self._reason(made)
        if items := self._processes.get(name):
            self._measure(made, items)
        return made

    def _state(self, said: WorkerState, row: WorkerRow | None) -> str:
        if row is not None:
            return "running" if row.state == "ready" else row.state
        if self._processes.get(said.id):
            return "running" if self._rows or self._controller else "orphaned"
        if on_another_host(said.host) and not self._ended:
            return f"{said.state} (last known)"
        return "failed" if said.state == "failed" else "ended"

    def _measure(self, made: WorkerView, items: list[RunProcess]) -> None:
        stats = [item.stat for item in items]
        made.cpu_s, made.rss_bytes = sum(stat.cpu for stat in stats) / TICKS, sum(stat.rss for stat in stats)
        made.processes = len(items)
        made.uptime_s = next((item.uptime_s for item in items if item.stat.pid == made.pid), None)
        page = page_path(str(self._run.runtime_dir), made.guard or items[0].guard_id, made.worker)
        with suppress(OSError):  # the page, which the worker writes even while nobody can ask it anything
            counters = parse(Path(page).read_bytes()[:SIZE])
            if counters is not None and counters.heartbeat:
                made.calls, made.pending = counters.ended, max(0, counters.begun - counters.ended)

    def _reason(self, made: WorkerView) -> str:
        """The newest report of its own end, else who stopped the run, else its guard's end."""
        for event in reversed(self._events):
            if event.get("event") == "exited" and (event.get("worker"), event.get("pid")) == (made.worker, made.pid):
                how = describe_exit(event.get("exit_code"), event.get("signal"))
                return f"{how}: {event['reason']}" if event.get("reason") else how
        if self._run.path and (by := read_text(self._run.path / STOPPED)):
            return f"stopped by {by}"
        for event in reversed(self._events):
            if event.get("event") == "guard_lost":
                return f"ended with its guard: {event.get('reason', '')}"
        return "ended with the run" if self._ended else "ended with the controller"


def _as_written(name: str, row: WorkerRow | None) -> WorkerState:
    """What is known of a worker that the controller has not written down."""
    if row is None:
        return WorkerState(id=name)
    return WorkerState(id=name, target=row.target, devices=row.devices, command=row.command, log=row.log_path)
