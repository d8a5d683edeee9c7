"""Attributes the guard's descendants to workers: by process tree, session, environment, and earlier observation."""

import os

from rolecall.guard.proc import Process, Stat, alive, descendants_of, environ, snapshot
from rolecall.guard.table import Record
from rolecall.protocol.environment import RUN, WORKER

_LOOKS = 3  # at most, where processes come and go without end


class Descendants:
    """The running descendants of the guard at one moment. Reading `/proc` blocks: construct it in another thread.

    Attributes:
        unmarked: Those whose environment does not name a run.
    """

    def __init__(self) -> None:
        for _ in range(_LOOKS):
            if self._look():
                break

    def _look(self) -> bool:
        """Whether none has ended before its environment was read: it may have left a child that nobody knows."""
        self._host = snapshot()
        self.by_pid: dict[int, Stat] = {
            pid: self._host[pid] for pid in descendants_of([os.getpid()], self._host) if not self._host[pid].dead
        }
        self._running = {stat.process for stat in self.by_pid.values()}
        self._by_worker: dict[str, set[int]] = {}
        self.unmarked: set[Process] = set()
        vanished = False
        for pid, stat in self.by_pid.items():
            env = environ(pid)
            self._by_worker.setdefault(env.get(WORKER, "").strip(" "), set()).add(pid)
            if RUN not in env:
                self.unmarked.add(stat.process)
                vanished |= not env and not alive(stat.process)
        return not vanished

    def owned(self, record: Record) -> set[Process]:
        """The processes of one worker, in any thread.

        Those with its id in their environment, the session and the tree of its main process, also after that has ended,
        and those that belonged to it earlier.
        """
        tracked = frozenset(record.tracked) & self._running
        roots = self._by_worker.get(record.worker_id, set()) | {process.pid for process in tracked}
        if record.process is not None:
            roots |= self._session(record.process)
        pids = (roots | descendants_of(roots, self.by_pid)) & self.by_pid.keys()
        return {self.by_pid[pid].process for pid in pids}

    def _session(self, root: Process) -> set[int]:
        """The root and its session. The kernel does not reuse a pid that is still the id of a session."""
        leader = self._host.get(root.pid)
        if leader is not None and leader.start != root.start:
            return set()  # the pid was reused, so its session had ended
        return {pid for pid, stat in self.by_pid.items() if stat.session == root.pid or pid == root.pid}
