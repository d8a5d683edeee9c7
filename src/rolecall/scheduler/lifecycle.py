"""How roles come into the table and leave it, whoever else starts, deletes or closes at the same time."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

from rolecall.errors import GuardLostError, RPCConnectionError, RPCError, WorkerCreationError, WorkerTimeoutError
from rolecall.scheduler.starting import Group, Starter, take_back
from rolecall.scheduler.stopping import destroy_engines, kill
from rolecall.scheduler.supervision import Supervision
from rolecall.scheduler.table import RoleRecord, Start, Table


class RoleLifecycle:
    """Starts and ends roles, all or nothing. It may be interrupted anywhere: what it began is taken back.

    Args:
        withdraw: Gives back what a backend took for workers with slots of their own, by their ids and role.
    """

    def __init__(
        self, table: Table, starter: Starter, watch: Supervision, withdraw: Callable[[Sequence[str], str], None]
    ) -> None:
        self._table, self._starter, self._watch, self._withdraw = table, starter, watch, withdraw

    @contextlib.contextmanager
    def starting(self, start: Start) -> Iterator[Start]:
        """Reserves a role's name. Whatever ends the start, a lost guard say, is an error of creation."""
        try:
            self._table.begin(start)
            yield start
        except BaseException as e:
            self._table.cancel(start)
            if self._watch.closing and isinstance(e, Exception):
                raise WorkerCreationError(start.role, "the scheduler was closed meanwhile") from e
            if isinstance(e, GuardLostError | RPCError | WorkerTimeoutError | TimeoutError):
                raise WorkerCreationError(start.role, str(e)) from e
            raise

    def bring_up(self, start: Start, group: Group, target: str | None = None) -> list[str]:
        """Starts the workers of a role; returns their ids."""
        try:
            return self.enter(start, RoleRecord(group.role, self._starter.start(group), target))
        except BaseException:
            take_back(group)
            raise

    def enter(self, start: Start, record: RoleRecord) -> list[str]:
        """Puts a role in service whose workers are ready; returns their ids."""
        if self._watch.closing:
            raise WorkerCreationError(record.name, "the scheduler was closed meanwhile")
        self._table.add(start, record)
        for member in record.members:
            member.guard.check()  # who was lost before its workers were in the table has told nobody
        self._watch.write_state()
        return [m.id for m in record.members]

    def end(self, record: RoleRecord, grace_s: float, *, destroy: bool = True) -> None:
        """Ends a role, and before it those that live in its slots."""
        for fork in self._table.retire(record, wait=not self._watch.closing):
            self.end(fork, grace_s, destroy=destroy)
        with record.ending:  # a second thread that ends it too waits here
            if self._table.holds(record):
                self._end_alone(record, grace_s, destroy=destroy)

    def _end_alone(self, record: RoleRecord, grace_s: float, *, destroy: bool) -> None:
        for member in record.members:
            member.leaving = not record.borrowed
        if destroy:
            destroy_engines(record)
        if not record.borrowed:
            kill(record.members, grace_s)
            for member in record.members:
                if member.client is not None:
                    member.client.fail(RPCConnectionError(member.id, f"role {record.name!r} was deleted"))
        if record.target is None:
            self._withdraw([m.id for m in record.members], record.name)
        self._table.remove(record)  # last: who is interrupted before can delete it again
        self._watch.write_state()
