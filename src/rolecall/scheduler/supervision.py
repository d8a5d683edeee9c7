"""What becomes of a guard's reports: failed members, events for listeners and files, the state for the command line."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import msgspec

from rolecall.errors import WorkerFailedError, WorkerStalledError, explained
from rolecall.guard.claims import abandoned
from rolecall.guard.sweep import sweep
from rolecall.protocol import events
from rolecall.protocol.message import to_plain
from rolecall.protocol.state import ControllerState, RoleState, RunState
from rolecall.scheduler.guards import GuardProxy
from rolecall.scheduler.listener import GuardListener
from rolecall.scheduler.run import Run
from rolecall.scheduler.table import Member, Table
from rolecall.transport.files import FileThread, read_within
from rolecall.transport.threads import start_thread

log = logging.getLogger("rolecall")
Listener = Callable[[str, dict[str, Any]], None]
LOG_TAIL_BYTES = 4096
READ_S = 1.0  # for a file system to give what an error says besides
WRITE_S = 5.0  # for it to take the state
EXPLAIN_S = 5.0  # for a cluster's manager to say why it ended a worker
DYING_POLL_S = 0.05  # a guard that is lost, or its reaper, is about to end
ENDING_SIGNALS = (signal.SIGTERM, signal.SIGKILL)  # how a cluster's manager ends what it has given


class Supervision:
    """Turns `exited`, `stalled`, `resumed` and a guard's loss into errors and records, on the I/O thread."""

    def __init__(self, run: Run, table: Table, guards: GuardListener) -> None:
        self._run, self._table, self.guards = run, table, guards
        self.listeners: list[Listener] = []
        self._roles: list[RoleState] = []
        self._files = FileThread("rolecall-files")
        self._writing = threading.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._complained = False

    def on_event(self, guard: GuardProxy, event: events.Event) -> None:
        match event:
            case events.Exited():
                return self._soon(self._on_exited(guard, event))
            case events.GuardLost():
                self._soon(self._on_lost(guard, self._table.members_of(guard)))
                if self._run.closing:
                    return
                if guard.here:
                    with suppress(BlockingIOError):  # no further thread: the end of the run sweeps too
                        start_thread(partial(self._sweep_after, guard), "rolecall-sweep")
            case events.Notice():
                log.warning("role %s: %s", event.role, event.reason)
            case events.Stalled():
                self._stall(guard, event)
        self._tell(event)

    def _sweep_after(self, guard: GuardProxy) -> None:
        """Ends what a guard has left if its reaper, who would, was killed with it."""
        part = self._run.runtime_dir / guard.guard_id
        while part.exists() and not self._run.closing:  # else it was cleaned, or will be with the run
            if abandoned(part):
                sweep(self._run.run_id, guard.guard_id, self._run.runtime_dir)
                return
            time.sleep(DYING_POLL_S)

    def _soon(self, work: Coroutine[Any, Any, None]) -> None:
        task = self.guards.io.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _on_exited(self, guard: GuardProxy, event: events.Exited) -> None:
        stopped_by, by = await self._stopped_by(), event.signal
        if guard.explain and by in ENDING_SIGNALS and not stopped_by:
            by_manager = by == signal.SIGTERM  # likely, and then it says so in a moment
            told = lambda cause: self._exited(event, "", cause)  # noqa: E731
            return guard.explain(guard, told, patient=by_manager, limit_s=EXPLAIN_S)
        return self._exited(event, stopped_by)

    async def _on_lost(self, guard: GuardProxy, members: Sequence[Member]) -> None:
        logs = (read_within(READ_S, partial(_tail, member.started.log_path), "") for member in members)
        tails = dict(zip(members, await asyncio.gather(*logs), strict=True))
        stopped_by = await self._stopped_by()
        self._fail(members, lambda member: _lost_with(guard, member, tails[member], stopped_by))

    async def _stopped_by(self) -> str:
        return await read_within(READ_S, self._run.stopped_by, "")

    def _exited(self, event: events.Exited, stopped_by: str, cause: str = "") -> None:
        """A worker has died. `cause`: what a cluster's manager says of it."""
        if cause:
            event = msgspec.structs.replace(event, reason="; ".join(filter(None, (cause, event.reason))))
        if stopped_by:
            event = msgspec.structs.replace(event, reason=f"stopped by {stopped_by}")
        where: dict[str, Any] = {name: getattr(event, name) for name in ("host", "pid", "reason", "log_path")}
        where["stopped_by"] = stopped_by
        error = WorkerFailedError(event.worker, event.exit_code, event.signal, event.log_tail, **where)
        if (member := self._table.died(error)) is not None:
            self._fail([member], lambda member: error)
        self._tell(event)

    def write_state(self, *, ended: bool = False) -> None:
        """Brings `state.json` up to date. While the run is being closed it keeps naming the workers that there were."""
        with self._writing:  # the I/O thread writes too, when a worker dies
            if not self._run.closing:
                self._roles = [record.view() for record in self._table.roles()]
            self._write(partial(self._run.write_state, self._state(self._roles, ended)))
        if not self.guards.io.on_thread and not self._files.drain(WRITE_S):
            self._complain(f"its file system does not respond within {WRITE_S:g} s")

    def state(self) -> RunState:
        """The run as it is now."""
        return self._state([record.view() for record in self._table.roles()], self._run.closing)

    def _state(self, roles: list[RoleState], ended: bool) -> RunState:
        run, addresses = self._run, self.guards.addresses
        return RunState(
            run_id=run.run_id,
            runtime_dir=str(run.runtime_dir),
            experiment=run.experiment,
            trial=run.trial,
            scheduler=run.scheduler,
            controller=ControllerState(pid=run.pid, host=os.uname().nodename, addresses=addresses, ended=ended),
            guards=[guard.state for guard in self.guards.all()],
            roles=roles,
            waiting=dict(self.guards.waiting),
        )

    def _write(self, write: Callable[[], object]) -> None:
        """Writes on a thread of its own.

        A full disk, a run directory that was removed and a file system that hangs must not keep callers from learning
        of a death.
        """

        def attempt() -> None:
            try:
                write()
            except OSError as e:
                self._complain(explained(e))

        if not self._files.submit(attempt):
            self._complain("its file system does not respond")

    def _complain(self, why: str) -> None:
        if not self._complained:
            self._complained = True
            log.warning("what the command line shows of this run is not kept up to date: %s", why)

    def _stall(self, guard: GuardProxy, event: events.Stalled) -> None:
        member = self._table.find(event.worker)
        if member is None or member.pid != event.pid:
            return
        error = WorkerStalledError(member.id, event.reason, event.stacks, host=guard.state.host, pid=member.pid)
        if event.kind == "stopped":  # the other kind is only a suspicion
            member.fail_pending(error)
        log.warning("%s", error.report)
        name = f"{member.id.replace('/', '-')}-{time.strftime('%H%M%S')}.txt"
        self._write(partial(self._run.write, f"stacks/{name}", f"{event.reason}\n{event.stacks}"))

    def _fail(self, members: Sequence[Member], error_of: Callable[[Member], WorkerFailedError]) -> None:
        """All of them first: nothing that is told or written may keep a caller waiting."""
        deaths = {member: error_of(member) for member in members if member.failed is None}
        news = [error for member, error in deaths.items() if not member.leaving and not self._run.closing]
        for member, error in deaths.items():
            member.fail(error)
        for error in news:
            log.warning("%s", error.report)
        if news:
            self.write_state()

    def _tell(self, event: events.Event) -> None:
        topic, facts = events.topic_of(event), to_plain(event)
        line = json.dumps({"time": time.time(), "event": topic, **facts}) + "\n"
        self._write(partial(self._run.write, "events.jsonl", line, "a"))
        for listener in self.listeners:
            try:
                listener(topic, facts)
            except Exception:  # a listener's fault must not stop the supervision
                log.exception("a listener raised on %s", topic)


def _lost_with(guard: GuardProxy, member: Member, tail: str, stopped_by: str) -> WorkerFailedError:
    log_path, reason = member.started.log_path, f"it ended with its guard, pid {guard.state.pid}: {guard.lost}"
    where: dict[str, Any] = {"host": guard.state.host, "pid": member.pid, "reason": reason, "log_path": log_path}
    return WorkerFailedError(member.id, None, signal.SIGKILL, tail, stopped_by=stopped_by, **where)


def _tail(path: str) -> str:
    try:
        with open(path, "rb") as f:  # noqa: PTH123 - a log of another host need not be here
            f.seek(max(0, os.fstat(f.fileno()).st_size - LOG_TAIL_BYTES))
            return f.read().decode(errors="replace")
    except OSError:
        return ""
