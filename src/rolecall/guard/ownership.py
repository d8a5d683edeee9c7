"""Which processes belong to which worker: by process tree, session, environment, and earlier observation."""

import os
from collections.abc import Iterable, Mapping

from rolecall.guard.proc import Process, Stat, below, environ, snapshot
from rolecall.guard.table import Record
from rolecall.protocol.environment import WORKER


class Census:
    """The running descendants of the guard at one moment. It reads `/proc`: make it outside the event loop's thread."""

    def __init__(self) -> None:
        self._all = snapshot()
        self.table: dict[int, Stat] = {
            pid: self._all[pid] for pid in below([os.getpid()], self._all) if not self._all[pid].dead
        }
        self._marked: dict[str, set[int]] = {}
        for pid in self.table:
            self._marked.setdefault(environ(pid).get(WORKER, "").strip(" "), set()).add(pid)

    def owned(self, worker_id: str, root: Process | None, tracked: Iterable[Process]) -> set[Process]:
        """The processes of one worker.

        Args:
            worker_id: The worker's id, as in the environment of its processes.
            root: Its main process, whose session and process tree count, also after it has ended.
            tracked: Processes that belonged to it earlier.
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
        """The root and its session. The kernel does not reuse a pid that is still the id of a session."""
        leader = self._all.get(root.pid)
        if leader is not None and leader.start != root.start:
            return set()  # the pid was reused, so its session had ended
        return {pid for pid, stat in self.table.items() if stat.session == root.pid or pid == root.pid}


def census_of(claims: Mapping[Record, tuple[str, Process | None, frozenset[Process]]]) -> dict[Record, set[Process]]:
    """Takes a census and shares it out. Runs in any thread: it is given copies of what it needs of the records."""
    census = Census()
    return {record: census.owned(*claim) for record, claim in claims.items()}
