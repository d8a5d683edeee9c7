"""The controller's table of roles and workers. Look-ups under one lock; nothing here waits or talks to anyone."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from rolecall.errors import (
    RolecallError,
    WorkerCreationError,
    WorkerFailedError,
    WorkerNotFoundError,
    WorkerTimeoutError,
)
from rolecall.placement.plan import Slot
from rolecall.protocol.guard import StartResult
from rolecall.protocol.state import RoleState, WorkerState
from rolecall.scheduler.calls import EngineRequest
from rolecall.scheduler.guards import GuardProxy
from rolecall.scheduler.programs import ProgramPeer
from rolecall.transport.call import fresh
from rolecall.transport.client import Client
from rolecall.types import Worker, role_and_index


@dataclass(eq=False)
class Member:
    """A living (or failed, not yet deleted) worker.

    Attributes:
        started: What its guard said when it was ready.
        incarnation: How often it was restarted.
        engines: By name, what its engines were made with; for its next incarnation, as `env` is.
        env: What was changed in its environment since it was started.
        conversation: That with a worker, or with a program that may host engines; None with other programs.
        leaving: It is being deleted, so its exit is no news.
        since: When it was ready, in seconds since the epoch.
    """

    worker: Worker
    slot: Slot
    guard: GuardProxy
    started: StartResult
    incarnation: int = 0
    engines: dict[str | None, EngineRequest] = field(default_factory=dict)
    env: dict[str, str] = field(default_factory=dict)
    conversation: Client | ProgramPeer | None = None
    failed: WorkerFailedError | None = None
    leaving: bool = False
    since: float = field(default_factory=time.time)

    @property
    def id(self) -> str:
        return self.worker.id

    @property
    def pid(self) -> int:
        return self.started.pid or 0

    def fail(self, error: WorkerFailedError) -> None:
        """Pending and later calls raise `error`."""
        self.failed = error
        self.hang_up(error)

    def hang_up(self, error: RolecallError) -> None:
        """Ends the conversation with it: pending and later calls raise `error`."""
        if self.conversation is not None:
            self.conversation.fail(error)

    def fail_pending(self, error: RolecallError) -> None:
        """Calls that wait for its answer raise `error`."""
        if self.conversation is not None:
            self.conversation.peer.fail_pending(error)

    def view(self, *, ending: bool) -> WorkerState:
        """It as a value, as it is now."""
        return WorkerState(
            id=self.id,
            ip=self.worker.ip,
            ports=list(self.worker.worker_ports),
            pid=self.pid,
            host=self.guard.state.host,
            guard=self.guard.guard_id,
            devices=list(self.slot.devices),
            target=self.slot.target,
            command=list(self.slot.argv) if self.slot.argv else None,
            log=self.started.log_path,
            state="failed" if self.failed else "ending" if ending else "running",
            since=self.since,
            incarnation=self.incarnation,
            timeline=self.started.timeline,
        )


@dataclass(eq=False)
class RoleRecord:
    """A role: its members, and the role in whose slots they live.

    Attributes:
        borrowed: True for colocation without a fork: the members are the target's own.
        members: Its workers; none while it is being started.
        deaths: Workers that died before it was in the table.
        leaving: It is being deleted, so nothing may be forked from it any more.
        ending: Held by whoever ends it; others who want the same wait, and find it gone.
    """

    name: str
    target: RoleRecord | None = None
    borrowed: bool = False
    members: list[Member] = field(default_factory=list)
    deaths: list[WorkerFailedError] = field(default_factory=list)
    leaving: bool = False
    ending: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def view(self) -> RoleState:
        """It as a value, as it is now."""
        ending, target = self.leaving and not self.borrowed, self.target.name if self.target else None
        return RoleState(name=self.name, target=target, workers=[m.view(ending=ending) for m in self.members])

    def slots(self) -> list[Slot]:
        return [member.slot for member in self.members]


class Table:
    """All roles of a run, in the order they were made."""

    def __init__(self) -> None:
        self._roles: dict[str, RoleRecord] = {}
        self._members: dict[str, Member] = {}
        self._starting: dict[str, RoleRecord] = {}
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)

    # Starts

    def begin(self, record: RoleRecord) -> None:
        """Reserves a role's name while it is being started.

        Raises:
            WorkerCreationError: The name is taken.
            WorkerNotFoundError: Its target is gone, or going.
        """
        with self._lock:
            if record.name in self._roles or record.name in self._starting:
                reason = "there is a role of that name already; delete it or choose another"
                raise WorkerCreationError(record.name, reason)
            target = record.target
            if target is not None and (target.leaving or not self.holds(target)):
                raise WorkerNotFoundError(target.name, [r.name for r in self._roles.values() if not r.leaving])
            self._starting[record.name] = record

    def add(self, record: RoleRecord, members: list[Member]) -> None:
        """Puts a started role in the table.

        Raises:
            WorkerCreationError: A member has died since it was ready; the role is not in the table.
        """
        with self._lock:
            _check_living(record, members)
            record.members, self._roles[record.name] = members, record
            if not record.borrowed:
                self._members.update({m.id: m for m in members})
            self._end_start(record)

    def cancel(self, record: RoleRecord) -> None:
        """Forgets a start that has failed, also one whose role has just been added. May be called twice."""
        with self._lock:
            self._end_start(record)
            self.remove(record)

    def begin_restart(self, worker_id: str) -> tuple[RoleRecord, Member]:
        """The worker and its role; `end_restart` must follow.

        Raises:
            WorkerNotFoundError: No such worker, or its role is being deleted.
            WorkerFailedError: It is being restarted already.
        """
        with self._lock:
            member, record = self.member(worker_id), self.role(role_and_index(worker_id)[0])
            if record.leaving:
                raise WorkerNotFoundError(worker_id, self.ids())
            self._check_restart(worker_id)
            self._starting[worker_id] = record
            return record, member

    def replace(self, record: RoleRecord, old: Member, new: Member) -> None:
        """Puts the next incarnation of a worker in the place of the last.

        Raises:
            WorkerCreationError: It has died since it was ready, or its role was deleted.
        """
        with self._lock:
            if record.leaving:
                raise WorkerCreationError(record.name, "the role was deleted meanwhile")
            _check_living(record, [new])
            record.members[record.members.index(old)] = self._members[new.id] = new

    def end_restart(self, worker_id: str) -> None:
        with self._lock:
            self._starting.pop(worker_id, None)
            self._changed.notify_all()

    def _end_start(self, record: RoleRecord) -> None:
        if self._starting.get(record.name) is record:  # the name may be another's by now, or have been so before
            del self._starting[record.name]
        self._changed.notify_all()

    # Ends

    def died(self, error: WorkerFailedError) -> Member | None:
        """The member that has died; when it is still being started, the start is told instead."""
        with self._lock:
            member, (role, _) = self._members.get(error.worker_id), role_and_index(error.worker_id)
            if member is not None and member.pid == error.pid:
                return member
            if (start := self._starting.get(error.worker_id) or self._starting.get(role)) is not None:
                start.deaths.append(error)
            return None

    def retire(self, record: RoleRecord, *, wait: bool) -> list[RoleRecord]:
        """Lets nothing begin in the slots of a role any more; returns the roles that live there.

        Args:
            wait: Wait for those that are being started there, so that they are among them.
        """
        with self._changed:
            record.leaving = True
            if wait:
                self._changed.wait_for(lambda: all(s.target is not record for s in self._starting.values()))
            return [r for r in self._roles.values() if r.target is record]

    def holds(self, record: RoleRecord) -> bool:
        """Whether this very role is still there, and not another one of its name."""
        return self._roles.get(record.name) is record

    def remove(self, record: RoleRecord) -> None:
        """Forgets a role; nothing happens when that was done before."""
        with self._lock:
            if self.holds(record):
                del self._roles[record.name]
                for member in [] if record.borrowed else record.members:
                    self._members.pop(member.id, None)

    # Look-ups

    def wait_for(self, name: str, timeout: float | None) -> RoleRecord:
        """The role, once it is no longer being started.

        Raises:
            WorkerNotFoundError: No such role.
            WorkerTimeoutError: Not ready in time.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: name not in self._starting, timeout):
                raise WorkerTimeoutError(name, timeout or 0.0, "ready workers")
            return self.role(name)

    def role(self, name: str) -> RoleRecord:
        with self._lock:
            if name not in self._roles:
                raise WorkerNotFoundError(name, list(self._roles))
            return self._roles[name]

    def member(self, worker_id: str) -> Member:
        found = self._members.get(worker_id)
        if found is None:
            raise WorkerNotFoundError(worker_id, self.ids())
        return found

    def living(self, worker_id: str) -> Member:
        """A worker that can be called.

        Raises:
            WorkerNotFoundError: No such worker.
            WorkerFailedError: It has died, or is being restarted.
        """
        member = self.member(worker_id)
        self._check_restart(worker_id)
        if member.failed is not None:
            raise fresh(member.failed)
        return member

    def _check_restart(self, worker_id: str) -> None:
        if worker_id in self._starting:
            raise WorkerFailedError(worker_id, stopped_by="its restart(), which has not ended")

    def find(self, worker_id: str) -> Member | None:
        return self._members.get(worker_id)

    def ids(self) -> list[str]:
        return list(self._members)

    def roles(self) -> list[RoleRecord]:
        with self._lock:
            return list(self._roles.values())

    def members_of(self, guard: GuardProxy) -> list[Member]:
        with self._lock:
            return [member for member in self._members.values() if member.guard is guard]


def _check_living(record: RoleRecord, members: Sequence[Member]) -> None:
    pids = {m.id: m.pid for m in members}
    for death in record.deaths:
        if death.pid == pids.get(death.worker_id):
            _, index = role_and_index(death.worker_id)
            raise WorkerCreationError(record.name, str(death), [index], {index: death.log_tail})
