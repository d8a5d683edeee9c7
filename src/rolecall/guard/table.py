"""The guard's table of workers. It owns the records; it never touches processes and never waits."""

import asyncio
import time
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

from rolecall.errors import WorkerNotFoundError
from rolecall.guard.children import Exit
from rolecall.guard.logs import FollowedLog
from rolecall.guard.proc import Process
from rolecall.guard.runtime import ProgressPage
from rolecall.protocol.guard import ProcessSpec, WorkerRow

if TYPE_CHECKING:
    from rolecall.transport.peer import Peer


class State(StrEnum):
    """The state of a worker. After ENDING its record is removed."""

    STARTING = "starting"
    READY = "ready"
    ENDING = "ending"


@dataclass(eq=False, slots=True)
class Record:
    """One worker.

    Attributes:
        env: The recorded part of its environment, which forks of it start from.
        created: Set when its process exists, or will not be started.
        exit_future: Done when its process has ended; None while it has no process.
        abort: Set when it is to be killed, or is stopped during its start; aborts a start in progress.
        stall: By what it was stopped, with its stacks.
        gone: Set when all of its processes have ended and its ports are released.
        tracked: Processes seen among its descendants, also when they have left its process tree.
        started_by: The worker that requested it and is killed together with it; empty for the controller.
        page: Its progress page.
        log: Its log file, as far as it is merged.
        waits_for: What its start waits for; the message of a timeout shows it.
        error: Why its process could not be created.
        warning: What failed while it was started, and was no reason not to start it.
        answers: How often it has answered when it was asked for its health; None for who is not asked.
        rss: Memory of its tree in bytes when last seen.
        stack: Where its stack began when it was ready.
    """

    spec: ProcessSpec
    env: dict[str, str]
    log_path: str
    page: ProgressPage
    log: FollowedLog
    ports: list[int] = field(default_factory=list)
    target_ports: list[int] = field(default_factory=list)
    socket: str = ""
    state: State = State.STARTING
    process: Process | None = None
    peer: "Peer | None" = None
    created: asyncio.Event = field(default_factory=asyncio.Event)
    exit_future: "asyncio.Future[Exit] | None" = None
    abort: asyncio.Event = field(default_factory=asyncio.Event)
    stall: str = ""
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    tracked: set[Process] = field(default_factory=set)
    started_by: str = ""
    answers: int | None = None
    rss: int = 0
    stack: int = 0
    log_start: int = 0
    waits_for: str = ""
    error: str = ""
    warning: str = ""
    requested: float = field(default_factory=time.monotonic)
    timeline: dict[str, float] = field(default_factory=lambda: {"requested": 0.0})

    @property
    def worker_id(self) -> str:
        return self.spec.worker_id

    @property
    def may_serve(self) -> bool:
        """Whether it is a worker, or a program that may become one."""
        return self.spec.argv is None or (self.spec.ready is not None and self.spec.ready.worker)

    @property
    def exit(self) -> Exit | None:
        """How its process ended, when it has."""
        return self.exit_future.result() if self.exit_future is not None and self.exit_future.done() else None

    def row(self) -> WorkerRow:
        """The worker as the answer to `table` shows it."""
        return WorkerRow(
            worker=self.worker_id,
            state=str(self.state),
            pid=self.process.pid if self.process else None,
            target=self.spec.target,
            ports=self.ports,
            devices=self.spec.devices,
            command=self.spec.argv,
            rss=self.rss,
            processes=len(self.tracked),
            log_path=self.log_path,
        )

    def mark(self, what: str) -> None:
        """Records when a step of the start was reached, in seconds since the request."""
        self.timeline.setdefault(what, time.monotonic() - self.requested)


class Table(dict[str, Record]):
    """Workers by id. It belongs to the loop's thread."""

    def living(self, worker_id: str) -> Record:
        """The record of a worker that is not ending.

        Raises:
            WorkerNotFoundError: There is none; the message lists the existing ones.
        """
        record = self.get(worker_id)
        if record is None or record.state is State.ENDING:
            raise WorkerNotFoundError(worker_id, [r.worker_id for r in self.values() if r.state is not State.ENDING])
        return record

    def remove(self, record: Record) -> bool:
        """Removes a record; False if it was removed before."""
        if self.get(record.worker_id) is not record:
            return False
        del self[record.worker_id]
        return True
