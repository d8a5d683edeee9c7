"""Attributes the guard's descendants to workers: by process tree, session, environment, and earlier observation."""

import os
from collections.abc import Iterable, Mapping

from rolecall.guard.proc import Process, Stat, descendants_of, environ, snapshot
from rolecall.guard.table import Record
from rolecall.protocol.environment import WORKER

Facts = tuple[str, Process | None, frozenset[Process]]  # the arguments of `Descendants.owned`


class Descendants:
    """The running descendants of the guard at one moment. Reading `/proc` blocks: construct it in another thread."""

    def __init__(self) -> None:
        self._host = snapshot()
        self.by_pid: dict[int, Stat] = {
            pid: self._host[pid] for pid in descendants_of([os.getpid()], self._host) if not self._host[pid].dead
        }
        self._by_worker: dict[str, set[int]] = {}
        for pid in self.by_pid:
            self._by_worker.setdefault(environ(pid).get(WORKER, "").strip(" "), set()).add(pid)

    def owned(self, worker_id: str, root: Process | None, tracked: Iterable[Process]) -> set[Process]:
        """The processes of one worker.

        Args:
            worker_id: The worker's id, as in the environment of its processes.
            root: Its main process, whose session and process tree count, also after it has ended.
            tracked: Processes that belonged to it earlier.
        """
        roots = self._by_worker.get(worker_id, set()) | {process.pid for process in tracked if self._running(process)}
        if root is not None:
            roots |= self._session(root)
        pids = (roots | descendants_of(roots, self.by_pid)) & self.by_pid.keys()
        return {self.by_pid[pid].process for pid in pids}

    def _running(self, process: Process) -> bool:
        stat = self.by_pid.get(process.pid)
        return stat is not None and stat.start == process.start

    def _session(self, root: Process) -> set[int]:
        """The root and its session. The kernel does not reuse a pid that is still the id of a session."""
        leader = self._host.get(root.pid)
        if leader is not None and leader.start != root.start:
            return set()  # the pid was reused, so its session had ended
        return {pid for pid, stat in self.by_pid.items() if stat.session == root.pid or pid == root.pid}


def processes_of(workers: Mapping[Record, Facts]) -> dict[Record, set[Process]]:
    """The processes of each worker. Any thread may call it: the facts are copies of what stands in the records."""
    descendants = Descendants()
    return {record: descendants.owned(*facts) for record, facts in workers.items()}
