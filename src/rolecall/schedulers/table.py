"""The controller's table of roles and workers. Look-ups under one lock; nothing here waits or talks to anyone."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any

from rolecall.errors import WorkerCreationError, WorkerFailedError, WorkerNotFoundError, WorkerTimeoutError
from rolecall.rpc.client import Client
from rolecall.schedulers.guards import GuardProxy
from rolecall.schedulers.plan import Slot
from rolecall.types import Worker


@dataclass
class Member:
    """A living (or failed, not yet deleted) worker."""

    worker: Worker
    slot: Slot
    guard: GuardProxy
    pid: int
    socket: str
    log_path: str
    client: Client | None = None
    failed: WorkerFailedError | None = None
    timeline: dict[str, float] = field(default_factory=dict)
    leaving: bool = False  # it is being deleted, so its exit is no news

    @property
    def id(self) -> str:
        return self.worker.id

    def row(self) -> dict[str, Any]:
        """What the command line shows of it."""
        return {
            "id": self.id,
            "ip": self.worker.ip,
            "ports": list(self.worker.worker_ports),
            "pid": self.pid,
            "host": self.guard.info.get("host", ""),
            "guard": self.guard.guard_id,
            "devices": list(self.slot.devices),
            "target": self.slot.target,
            "command": list(self.slot.argv) if self.slot.argv else None,
            "log": self.log_path,
            "state": "failed" if self.failed else "running",
        }


@dataclass
class RoleRecord:
    """A role: its members, and the role in whose slots they live.

    Attributes:
        borrowed: True for colocation without a fork: the members are the target's own.
    """

    name: str
    members: list[Member]
    target: str | None = None
    borrowed: bool = False

    def slots(self) -> list[Slot]:
        return [m.slot for m in self.members]


class Table:
    """All roles of a run, in the order they were made."""

    def __init__(self) -> None:
        self._roles: dict[str, RoleRecord] = {}
        self._members: dict[str, Member] = {}
        self._starting: set[str] = set()
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)

    def begin(self, role: str) -> None:
        """Reserves a role's name while it is being started."""
        with self._lock:
            if role in self._roles or role in self._starting:
                raise WorkerCreationError(role, "there is a role of that name already; delete it or choose another")
            self._starting.add(role)

    def abandon(self, role: str) -> None:
        with self._lock:
            self._starting.discard(role)
            self._changed.notify_all()

    def add(self, record: RoleRecord) -> None:
        with self._lock:
            self._starting.discard(record.name)
            self._roles[record.name] = record
            if not record.borrowed:
                self._members.update({m.id: m for m in record.members})
            self._changed.notify_all()

    def has(self, name: str) -> bool:
        return name in self._roles

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

    def find(self, worker_id: str) -> Member | None:
        return self._members.get(worker_id)

    def ids(self) -> list[str]:
        with self._lock:
            return list(self._members)

    def roles(self) -> list[RoleRecord]:
        with self._lock:
            return list(self._roles.values())

    def members(self) -> list[Member]:
        with self._lock:
            return list(self._members.values())

    def members_of(self, guard: GuardProxy) -> list[Member]:
        return [m for m in self.members() if m.guard is guard]

    def deletion_order(self, role: str) -> list[RoleRecord]:
        """The role and all that live in its slots, forks first."""
        with self._lock:
            record = self.role(role)
            forks = [r for r in self._roles.values() if r.target == role]
            return [r for fork in forks for r in self.deletion_order(fork.name)] + [record]

    def remove(self, record: RoleRecord) -> None:
        with self._lock:
            self._roles.pop(record.name, None)
            if not record.borrowed:
                for member in record.members:
                    self._members.pop(member.id, None)
