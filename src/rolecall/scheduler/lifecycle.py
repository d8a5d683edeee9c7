"""How roles come into the table and leave it, whoever else starts, deletes or closes at the same time."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import wait
from dataclasses import replace

from rolecall.errors import (
    GuardLostError,
    RPCConnectionError,
    RPCError,
    WorkerConfigurationError,
    WorkerCreationError,
    WorkerFailedError,
    WorkerTimeoutError,
)
from rolecall.placement.base import Placement
from rolecall.placement.plan import Plan, Slot, forked_slots
from rolecall.scheduler.guards import GuardProxy
from rolecall.scheduler.processes import Ending, Group, destroy_engines, end_processes
from rolecall.scheduler.supervision import Supervision
from rolecall.scheduler.table import Member, RoleRecord, Table
from rolecall.scheduler.worker_calls import WorkerCalls
from rolecall.types import Job

GROUP_S = 2.0  # after which a restart says what it most likely waits for
WAITS_FOR_GROUP = (
    "the restart of %s waits for an engine to be made: one that joins its process group waits for all ranks of it; "
    "restart the others of role %s too, at the same time, or each with engines=False"
)
log = logging.getLogger("rolecall")


class RoleLifecycle:
    """Starts and ends roles, all or nothing. It may be interrupted anywhere: what it began is taken back."""

    def __init__(self, table: Table, calls: WorkerCalls, watch: Supervision, placement: Placement) -> None:
        self._table, self._calls, self._watch, self._placement = table, calls, watch, placement
        self._guards = watch.guards

    def plan(self, job: Job) -> Plan:
        """What `create` would start."""
        strategy = job.scheduling_strategy
        if strategy.type == "separation":
            return self._placement.plan(job)
        target = self._target_of(job)
        slots = forked_slots(job, target.slots()) if strategy.fork else ()
        return Plan(job.role, slots, target.name)

    def create(self, job: Job) -> list[str]:
        """Starts a role in slots of its own or in those of another; returns the ids of its workers."""
        if job.scheduling_strategy.type == "separation":
            return self._create_apart(job)
        target = self._target_of(job)
        if job.scheduling_strategy.fork:
            return self._fork(job, target)
        return self._borrow(job, target)

    def _fork(self, job: Job, target: RoleRecord) -> list[str]:
        slots = forked_slots(job, target.slots())
        with self._starting(RoleRecord(job.role, target)) as record:
            for slot in slots:
                self._check_target(job.role, slot)
            return self._bring_up(record, slots, [m.guard for m in target.members])

    def _check_target(self, role: str, slot: Slot) -> None:
        try:
            self._table.living(str(slot.target))
        except WorkerFailedError as e:
            reason = f"{slot.worker_id} lives in the slot of {slot.target}; restart it first: {e}"
            raise WorkerCreationError(role, reason) from e

    def end(self, record: RoleRecord, how: Ending) -> None:
        """Ends a role, and before it those that live in its slots."""
        for fork in self._table.retire(record, wait=not self._guards.closing):
            self.end(fork, how)
        with record.ending:  # a second thread that ends it too waits here
            if self._table.holds(record):
                self._end_alone(record, how)

    def restart(self, worker_id: str, how: Ending, *, engines: bool) -> None:
        """Ends a worker where it lives, and starts its next incarnation in its slot."""
        with contextlib.ExitStack() as ends:
            record, old = self._table.begin_restart(worker_id)
            ends.callback(self._watch.write_state)
            ends.callback(self._table.end_restart, worker_id)
            with self._as_creation_errors(record.name):
                guard = self._guard_for(record, old)
                self._end_incarnation(old, how)
                self._begin_incarnation(record, old, guard, engines=engines)

    def _end_incarnation(self, old: Member, how: Ending) -> None:
        if old.failed is None:
            old.leaving = True
            destroy_engines([old], how.destroy_s)
        end_processes([old], how)
        if old.failed is None:
            old.fail(WorkerFailedError(old.id, pid=old.pid, host=old.guard.state.host, stopped_by="its restart()"))

    def _begin_incarnation(self, record: RoleRecord, old: Member, guard: GuardProxy, *, engines: bool) -> None:
        """The next one is in the table while its engines are made, so that its death is noticed."""
        slot = replace(old.slot, env={**old.slot.env, **old.env})
        with self._started(Group(record.name, [slot], [guard], record.members)) as (new,):
            new.incarnation, new.engines = old.incarnation + 1, old.engines if engines else {}
            self._table.replace(record, old, new)
            new.guard.check()
            self._watch.write_state()
            for request in list(new.engines.values()):
                pending = self._calls.make_engine(new, request)
                if slot.process_group and not wait([pending], GROUP_S).done:
                    log.warning(WAITS_FOR_GROUP, new.id, record.name)
                pending.result()

    def _guard_for(self, record: RoleRecord, old: Member) -> GuardProxy:
        """Who owns the slot of a worker: who did, or after its loss another, where the backend can start one."""
        if old.slot.target is not None:
            self._check_target(record.name, old.slot)
            return self._table.member(old.slot.target).guard
        if old.guard.lost is None:
            return old.guard
        return self._guards.guard(self._placement.replace_guard(record.name))

    def _create_apart(self, job: Job) -> list[str]:
        with self._starting(RoleRecord(job.role)) as record:
            try:
                plan, guards = self._placement.place(job)
                return self._bring_up(record, plan.slots, list(map(self._guards.guard, guards)))
            except BaseException:
                self._placement.release(job.role)
                raise

    def _borrow(self, job: Job, target: RoleRecord) -> list[str]:
        """A role without processes of its own: its engines live in the workers of another."""
        for spec in job.specs():
            if spec.cmd is not None or spec.env_vars or job.process_group:
                seen = "cmd" if spec.cmd is not None else "env_vars" if spec.env_vars else "process_group"
                expected = f"role {job.role!r} would live in the processes of {target.name!r}; use fork=True"
                raise WorkerConfigurationError(
                    "colocation without a fork takes no program and no environment", seen, expected
                )
        with self._starting(RoleRecord(job.role, target, borrowed=True)) as record:
            return self._enter(record, target.members)

    def _target_of(self, job: Job) -> RoleRecord:
        target = self._table.role(str(job.scheduling_strategy.target))
        if len(target.members) != job.replicas:
            what = f"role {job.role!r} has {job.replicas} replica(s), its target {target.name!r} {len(target.members)}"
            raise WorkerConfigurationError(what, None, "a colocated role needs as many as its target")
        return target

    @contextlib.contextmanager
    def _starting(self, record: RoleRecord) -> Iterator[RoleRecord]:
        """Reserves a role's name."""
        with self._as_creation_errors(record.name):
            try:
                self._table.begin(record)
                yield record
            except BaseException:
                self._table.cancel(record)
                raise

    @contextlib.contextmanager
    def _as_creation_errors(self, role: str) -> Iterator[None]:
        """Whatever ends a start, a lost guard say, is an error of creation."""
        try:
            yield
        except Exception as e:
            if self._guards.closing:
                raise WorkerCreationError(role, "the scheduler was closed meanwhile") from e
            if isinstance(e, GuardLostError | RPCError | WorkerFailedError | WorkerTimeoutError | TimeoutError):
                raise WorkerCreationError(role, str(e)) from e
            raise

    def _bring_up(self, record: RoleRecord, slots: Sequence[Slot], guards: Sequence[GuardProxy]) -> list[str]:
        """Starts the workers of a role; returns their ids."""
        with self._started(Group(record.name, slots, guards)) as members:
            return self._enter(record, members)

    @contextlib.contextmanager
    def _started(self, group: Group) -> Iterator[list[Member]]:
        """Starts workers, and ends them again unless what is done with them succeeds."""
        connect, device_variable = self._calls.connect, self._placement.device_variable
        try:
            yield group.start(self._guards.io, connect, self._guards.start_timeout, device_variable)
        except BaseException as e:
            group.rollback(self._guards.grace_s if isinstance(e, Exception) else 0.0)
            raise

    def _enter(self, record: RoleRecord, members: list[Member]) -> list[str]:
        """Puts a role in service whose workers are ready; returns their ids."""
        if self._guards.closing:
            raise WorkerCreationError(record.name, "the scheduler was closed meanwhile")
        self._table.add(record, members)
        for member in members:
            member.guard.check()  # who was lost before its workers were in the table has told nobody
        self._watch.write_state()
        return [m.id for m in members]

    def _end_alone(self, record: RoleRecord, how: Ending) -> None:
        for member in record.members:
            member.leaving = not record.borrowed
        destroy_engines(record.members, how.destroy_s, record.name if record.borrowed else None)
        if not record.borrowed:
            end_processes(record.members, how)
            for member in record.members:
                member.hang_up(RPCConnectionError(member.id, f"role {record.name!r} was deleted"))
        if record.target is None:
            self._placement.release(record.name)
        self._table.remove(record)  # last: who is interrupted before can delete it again
        self._watch.write_state()
