"""Ends workers: SIGTERM to all that is theirs, a grace, SIGKILL, seen dead, ports free. It never holds a lock."""

import asyncio
import logging
import signal
import time
from collections.abc import Callable, Sequence

from rolecall.errors import describe_exit
from rolecall.guard.ownership import census_of
from rolecall.guard.ports import PortLeases
from rolecall.guard.proc import Process, read_stat, send
from rolecall.guard.table import Record, State, Table
from rolecall.protocol.guard import KillReport

KILL_S = 10.0  # after SIGKILL; only the kernel's uninterruptible sleep outlasts it
REAP_S = 5.0  # between a process's death and the news of it
_FIRST_LOOK_S = 0.004
_LAST_LOOK_S = 0.1

_log = logging.getLogger(__name__)


class Killer:
    """Ends records of a table. Every way to end leads through `end`, and several at once for one record do no harm."""

    def __init__(self, table: Table, ports: PortLeases, on_gone: Callable[[Record], None]) -> None:
        self._table, self._ports, self._on_gone = table, ports, on_gone

    async def end(self, records: Sequence[Record], grace_s: float) -> KillReport:
        """Ends workers with everything that belongs to them.

        Args:
            records: Whom. A start under way is aborted.
            grace_s: Seconds between SIGTERM and SIGKILL; 0 for SIGKILL at once.
        """
        for record in records:
            record.state = State.ENDING
            record.abort.set()
        await asyncio.gather(*(record.made.wait() for record in records))
        left = await self._kill(records, grace_s)
        ends = [record.end for record in records if record.end is not None and record not in left]
        if ends:
            await asyncio.wait(ends, timeout=REAP_S)
        return self._close(records, left)

    async def _kill(self, records: Sequence[Record], grace_s: float) -> dict[Record, set[Process]]:
        grace_ends = time.monotonic() + grace_s
        asked: set[Process] = set()
        pause = _FIRST_LOOK_S
        while True:
            owned = {record: left for record, left in (await self._look(records)).items() if left}
            everybody = set().union(*owned.values())
            if not everybody or time.monotonic() > grace_ends + KILL_S:
                return owned
            if time.monotonic() < grace_ends:
                self._ask(everybody - asked)
                asked |= everybody
            else:
                for process in everybody:
                    send(process, signal.SIGKILL)
            await self._wait(owned, min(pause, max(grace_ends - time.monotonic(), _FIRST_LOOK_S)))
            pause = min(pause * 1.5, _LAST_LOOK_S)

    def _ask(self, processes: set[Process]) -> None:
        for process in processes:
            send(process, signal.SIGTERM)
            send(process, signal.SIGCONT)  # a stopped one could not obey

    async def _look(self, records: Sequence[Record]) -> dict[Record, set[Process]]:
        claims = {record: (record.worker_id, record.process, frozenset(record.tracked)) for record in records}
        owned = await asyncio.to_thread(census_of, claims)
        for record, processes in owned.items():
            record.tracked |= processes  # who is orphaned while its parent dies stays attributed
        return owned

    async def _wait(self, owned: dict[Record, set[Process]], pause: float) -> None:
        """Waits for the workers' own processes to end, at most `pause`; when all have, for the rest of it."""
        ends = [record.end for record in owned if record.end is not None and not record.end.done()]
        if ends:
            await asyncio.wait(ends, timeout=pause)
        else:
            await asyncio.sleep(pause)

    def _close(self, records: Sequence[Record], left: dict[Record, set[Process]]) -> KillReport:
        return KillReport(
            killed={record.worker_id: _ended(record) for record in records},
            survivors=[_named(record, process) for record in records for process in left.get(record, ())],
            ports=[port for record in records for port in self._forget(record, bool(left.get(record)))],
        )

    def _forget(self, record: Record, survivors: bool) -> list[int]:
        """Takes a record out of the table; returns the ports that were given back."""
        if not self._table.remove(record):
            return []  # another task has ended it at the same time; its ports may be leased again by now
        if survivors:
            _log.error("%s left processes that SIGKILL does not end; its ports stay leased", record.worker_id)
        ports = [] if survivors else self._ports.release(record.worker_id)
        record.gone.set()
        self._on_gone(record)
        return ports


def _ended(record: Record) -> str:
    return describe_exit(record.exit.code, record.exit.signal) if record.exit else "never ran"


def _named(record: Record, process: Process) -> str:
    stat = read_stat(process.pid)
    return f"{record.worker_id} {process.pid} {stat.name if stat else ''}"
