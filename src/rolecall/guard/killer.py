"""Kills workers: SIGTERM to all their processes, a grace period, SIGKILL, proof that they ended. It holds no lock."""

import asyncio
import logging
import signal
import time
from collections.abc import Callable, Sequence

from rolecall.errors import describe_exit
from rolecall.guard.descendants import Descendants
from rolecall.guard.ports import PortLeases
from rolecall.guard.proc import Process, of_another_user, read_stat, send
from rolecall.guard.table import Record, State, Table
from rolecall.protocol.guard import KillReport
from rolecall.transport.threads import in_thread

KILL_S = 10.0  # after SIGKILL; only the kernel's uninterruptible sleep outlasts it
OTHERS_S = 2.0  # for what has changed its user to end by itself
REAP_S = 5.0  # between a process's death and SIGCHLD
_FIRST_POLL_S = 0.004
_LAST_POLL_S = 0.1

_log = logging.getLogger(__name__)


class Killer:
    """Kills the workers of a table. Several tasks may kill the same worker at once."""

    def __init__(self, table: Table, ports: PortLeases, on_removed: Callable[[Record], None]) -> None:
        self._table, self._ports, self._on_removed = table, ports, on_removed

    async def kill(self, records: Sequence[Record], grace_s: float) -> KillReport:
        """Kills workers with all their processes.

        Args:
            records: The workers. A start in progress is aborted.
            grace_s: Seconds between SIGTERM and SIGKILL; 0 for SIGKILL at once.
        """
        for record in records:
            record.state = State.ENDING
            record.abort.set()
        await asyncio.gather(*(record.created.wait() for record in records))
        survivors = await self._kill_processes(records, grace_s)
        ends = [record.exit_future for record in records if record.exit_future is not None and record not in survivors]
        if ends:
            await asyncio.wait(ends, timeout=REAP_S)
        return self._report(records, survivors)

    async def _kill_processes(self, records: Sequence[Record], grace_s: float) -> dict[Record, set[Process]]:
        grace_ends = time.monotonic() + grace_s
        limit = grace_ends + KILL_S
        terminated: set[Process] = set()
        pause = _FIRST_POLL_S
        while True:
            found = await self._find(records)
            # Another task may have killed one meanwhile; what bears its id then is the next worker of that name.
            owned = {record: left for record, left in found.items() if left and not record.gone.is_set()}
            running = set().union(*owned.values())
            if not running or time.monotonic() > limit:
                return owned
            if time.monotonic() < grace_ends:
                for process in running - terminated:
                    send(process, signal.SIGTERM)
                    send(process, signal.SIGCONT)  # a stopped process does not handle SIGTERM
                terminated |= running
            else:
                for process in running:
                    send(process, signal.SIGKILL)
                if all(map(of_another_user, running)):
                    limit = min(limit, grace_ends + OTHERS_S)
                    for record in owned:  # a worker ends without its guard, unless its engine hangs
                        if record.peer is not None:
                            record.peer.close()
            await self._wait(owned, min(pause, max(grace_ends - time.monotonic(), _FIRST_POLL_S)))
            pause = min(pause * 1.5, _LAST_POLL_S)

    async def _find(self, records: Sequence[Record]) -> dict[Record, set[Process]]:
        descendants = await in_thread(Descendants)
        owned = {record: descendants.owned(record) for record in records}
        for record, processes in owned.items():
            record.tracked |= processes  # an orphan whose parent has just died stays attributed
        return owned

    async def _wait(self, owned: dict[Record, set[Process]], pause: float) -> None:
        """Waits for the workers' own processes to end, at most `pause`; when all have, for the rest of it."""
        futures = (record.exit_future for record in owned)
        ends = [future for future in futures if future is not None and not future.done()]
        if ends:
            await asyncio.wait(ends, timeout=pause)
        else:
            await asyncio.sleep(pause)

    def _report(self, records: Sequence[Record], survivors: dict[Record, set[Process]]) -> KillReport:
        return KillReport(
            killed={record.worker_id: _ended(record) for record in records},
            survivors=[_named(record, process) for record in records for process in survivors.get(record, ())],
            ports=[port for record in records for port in self._remove(record, bool(survivors.get(record)))],
        )

    def _remove(self, record: Record, survivors: bool) -> list[int]:
        """Removes a record from the table; returns the ports that were released."""
        if not self._table.remove(record):
            return []  # another task has killed it at the same time, and its ports may be leased again
        if survivors:
            _log.error("%s left processes that SIGKILL does not end; its ports stay leased", record.worker_id)
        ports = [] if survivors else self._ports.release(record.worker_id)
        record.gone.set()
        self._on_removed(record)
        return ports


def _ended(record: Record) -> str:
    return describe_exit(record.exit.code, record.exit.signal) if record.exit else "never ran"


def _named(record: Record, process: Process) -> str:
    stat = read_stat(process.pid)
    whose = " (another user's: it or root may end it)" if of_another_user(process) else ""
    return f"{record.worker_id} {process.pid} {stat.name if stat else ''}{whose}"
