"""What becomes of a guard's reports: failed members, events for listeners and files, the state for the command line."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from rolecall.errors import WorkerFailedError, WorkerStalledError
from rolecall.scheduler.guards import Explain, GuardProxy
from rolecall.scheduler.run import Run
from rolecall.scheduler.table import Member, Table

log = logging.getLogger("rolecall")
Listener = Callable[[str, dict[str, Any]], None]
LOG_TAIL_BYTES = 4096
WORDS_S = 5.0  # for a cluster's manager to say why it ended a worker
ENDING_SIGNALS = (signal.SIGTERM, signal.SIGKILL)  # how a cluster's manager ends what it has given


class Supervision:
    """Runs on the I/O thread: turns `exited`, `stalled`, `resumed` and a guard's loss into errors and records."""

    def __init__(self, run: Run, table: Table) -> None:
        self._run, self._table = run, table
        self.listeners: list[Listener] = []
        self.guards: Callable[[], list[GuardProxy]] = list
        self.explain: Explain | None = None
        self.closing = False
        self._roles: list[dict[str, Any]] = []
        self._writing = threading.Lock()
        self._complained = False

    def on_event(self, guard: GuardProxy, topic: str, facts: dict[str, Any]) -> None:
        if topic == "exited" and self.explain is not None and facts["signal"] in ENDING_SIGNALS:
            by_manager = facts["signal"] == signal.SIGTERM  # likely, and then it says so in a moment
            self.explain(guard, lambda words: self._exited(facts, words), patient=by_manager, limit_s=WORDS_S)
            return
        if topic == "exited":
            self._exited(facts)
            return
        if topic == "notice":
            log.warning("role %s: %s", facts["role"], facts["reason"])
        if topic == "stalled":
            self._stall(guard, facts)
        self._tell(topic, facts)

    def _exited(self, facts: dict[str, Any], words: str = "") -> None:
        """A worker has died. `words`: what a cluster's manager says of it."""
        facts |= {"reason": "; ".join(filter(None, (words, facts["reason"])))}
        error = exit_error(facts)
        member = self._table.died(error)
        if member is not None:
            self._fail([member], lambda member: error)
        self._tell("exited", facts)

    def on_guard_lost(self, guard: GuardProxy) -> None:
        self._fail(self._table.members_of(guard), lambda member: _lost_with(guard, member))
        if not self.closing:
            self._tell("guard_lost", {"guard": guard.guard_id, "reason": str(guard.lost)})

    def write_state(self, *, ended: bool = False) -> None:
        """Brings `state.json` up to date. While the run is being closed it keeps naming the workers that there were."""
        with self._writing:  # the I/O thread writes too, when a worker dies
            if not self.closing:
                self._roles = [
                    {"name": r.name, "target": r.target, "workers": [m.row() for m in r.members]}
                    for r in self._table.roles()
                ]
            state = {
                "controller": {"pid": os.getpid(), "host": os.uname().nodename, "ended": ended},
                "guards": [{"id": g.guard_id, **g.info} for g in self.guards()],
                "roles": self._roles,
            }
            with self._bookkeeping():
                self._run.write_state(state)

    @contextlib.contextmanager
    def _bookkeeping(self) -> Iterator[None]:
        """A full disk or a run directory that was removed must not keep callers from learning of a death."""
        try:
            yield
        except OSError as e:
            if not self._complained:
                self._complained = True
                log.warning("what the command line shows of this run is not kept up to date: %s", e)

    def _stall(self, guard: GuardProxy, facts: dict[str, Any]) -> None:
        member = self._table.find(str(facts["worker"]))
        if member is None or member.pid != facts["pid"]:
            return
        host = guard.info.get("host", "")
        error = WorkerStalledError(member.id, facts["reason"], facts["stacks"], host=host, pid=member.pid)
        if facts["kind"] == "stopped" and member.client is not None:  # the other kind is only a suspicion
            member.client.peer.fail_pending(error)
        log.warning("%s", error)
        name = f"{member.id.replace('/', '-')}-{time.strftime('%H%M%S')}.txt"
        with self._bookkeeping():
            (self._run.run_dir / "stacks" / name).write_text(f"{facts['reason']}\n{facts['stacks']}")

    def _fail(self, members: Sequence[Member], error_of: Callable[[Member], WorkerFailedError]) -> None:
        """All of them first: nothing that is told or written may keep a caller waiting."""
        failed = [member for member in members if member.failed is None]
        for member in failed:
            member.fail(error_of(member))
        news = [member for member in failed if not member.leaving and not self.closing]
        for member in news:
            log.warning("%s", member.failed)
        if news:
            self.write_state()

    def _tell(self, topic: str, facts: dict[str, Any]) -> None:
        with self._bookkeeping(), (self._run.run_dir / "events.jsonl").open("a") as f:
            f.write(json.dumps({"time": time.time(), "event": topic, **facts}) + "\n")
        for listener in self.listeners:
            try:
                listener(topic, facts)
            except Exception:  # a listener's fault must not stop the supervision
                log.exception("a listener raised on %s", topic)


def exit_error(facts: dict[str, Any]) -> WorkerFailedError:
    """The error for a guard's `exited` report."""
    return WorkerFailedError(
        facts["worker"],
        facts["exit_code"],
        facts["signal"],
        facts["log_tail"],
        host=facts["host"],
        pid=facts["pid"],
        reason=facts["reason"],
        log_path=facts["log_path"],
    )


def _lost_with(guard: GuardProxy, member: Member) -> WorkerFailedError:
    return WorkerFailedError(
        member.id,
        signal=9,
        log_tail=_tail(member.log_path),
        host=guard.info.get("host", ""),
        pid=member.pid,
        reason=f"it ended with its guard, pid {guard.info.get('pid')}: {guard.lost}",
        log_path=member.log_path,
    )


def _tail(path: str) -> str:
    try:
        with open(path, "rb") as f:  # noqa: PTH123 - a log of another host need not be here
            f.seek(max(0, os.fstat(f.fileno()).st_size - LOG_TAIL_BYTES))
            return f.read().decode(errors="replace")
    except OSError:
        return ""
