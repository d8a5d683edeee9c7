"""Reaps all children of the guard, orphans included. Nothing else in the guard calls `waitpid`."""

import asyncio
import os
import signal
from contextlib import suppress
from typing import NamedTuple

from rolecall.guard.proc import Process, identify

_KEPT = 4096  # exits of processes that are not watched yet; a forked child may end before its pid is read


class Exit(NamedTuple):
    """How a process ended: one of the two is not None."""

    code: int | None
    signal: int | None


class Children:
    """Reaps children and orphans, and completes the futures of those that are watched.

    All methods belong to the loop's thread, which is the main one.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._watched: dict[Process, asyncio.Future[Exit]] = {}
        self._unclaimed: dict[Process, Exit] = {}
        loop.add_signal_handler(signal.SIGCHLD, self.reap)

    def watch(self, process: Process) -> "asyncio.Future[Exit]":
        """A future of the process's exit; done already if it has ended."""
        future: asyncio.Future[Exit] = self._loop.create_future()
        if process in self._unclaimed:
            future.set_result(self._unclaimed.pop(process))
        else:
            self._watched[process] = future
        return future

    def reap(self) -> None:
        """Reaps all that have ended. It is also called every second, in case a SIGCHLD was lost."""
        with suppress(ChildProcessError):  # there are none
            while ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                process = identify(ended.si_pid)  # while it is a zombie its start time can still be read
                _, status = os.waitpid(ended.si_pid, 0)
                if process is not None:
                    self._complete(process, os.waitstatus_to_exitcode(status))

    def _complete(self, process: Process, code: int) -> None:
        end = Exit(code if code >= 0 else None, -code if code < 0 else None)
        future = self._watched.pop(process, None)
        if future is None:
            self._unclaimed[process] = end
            while len(self._unclaimed) > _KEPT:
                del self._unclaimed[next(iter(self._unclaimed))]
        elif not future.done():
            future.set_result(end)

    def close(self) -> None:
        self._loop.remove_signal_handler(signal.SIGCHLD)
