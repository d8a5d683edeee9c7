"""Which processes belong to which worker: by tree, by session, by marker, and by having been seen before."""

import os
from collections.abc import Iterable, Mapping

from rolecall.guard.proc import Process, Stat, below, environ, snapshot
from rolecall.guard.table import Record
from rolecall.protocol.environment import WORKER


class Census:
    """The living processes below the guard at one moment. It reads `/proc`: take it outside the loop's thread."""

    def __init__(self) -> None:
        self._all = snapshot()
        self.table: dict[int, Stat] = {
            pid: self._all[pid] for pid in below([os.getpid()], self._all) if not self._all[pid].dead
        }
        self._marked: dict[str, set[int]] = {}
        for pid in self.table:
            self._marked.setdefault(environ(pid).get(WORKER, "").strip(" "), set()).add(pid)

    def owned(self, worker_id: str, root: Process | None, tracked: Iterable[Process]) -> set[Process]:
        """What belongs to one worker.

        Args:
            worker_id: Whose marker counts.
            root: Its own process; its session and its tree count, also after it has ended.
            tracked: Processes that belonged to it before.
        """
        roots = self._marked.get(worker_id, set()) | {process.pid for process in tracked if self._is(process)}
        if root is not None:
            roots |= self._session(root)
        pids = (roots | below(roots, self.table)) & self.table.keys()
        return {self.table[pid].process for pid in pids}

    def _is(self, process: Process) -> bool:
        stat = self.table.get(process.pid)
        return stat is not None and stat.start == process.start

    def _session(self, root: Process) -> set[int]:
        """The root and its session. The kernel gives no pid out again that still names a session."""
        leader = self._all.get(root.pid)
        if leader is not None and leader.start != root.start:
            return set()  # given out again, so nobody of its session was left
        return {pid for pid, stat in self.table.items() if stat.session == root.pid or pid == root.pid}


def census_of(claims: Mapping[Record, tuple[str, Process | None, frozenset[Process]]]) -> dict[Record, set[Process]]:
    """Takes a census and shares it out. Runs in any thread: it is given copies of what it needs of the records."""
    census = Census()
    return {record: census.owned(*claim) for record, claim in claims.items()}
