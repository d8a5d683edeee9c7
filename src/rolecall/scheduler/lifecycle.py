"""How roles come into the table and leave it, whoever else starts, deletes or closes at the same time.

Workers of a role are started all or none, through the guards that own their slots; those that are ended are seen dead.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import wait
from dataclasses import dataclass, replace

from rolecall.errors import (
    GuardLostError,
    RolecallError,
    RPCConnectionError,
    RPCError,
    WorkerConfigurationError,
    WorkerCreationError,
    WorkerFailedError,
    WorkerTimeoutError,
)
from rolecall.placement.base import Placement
from rolecall.placement.plan import Plan, Slot, forked_slots
from rolecall.placement.waiting import Waiting
from rolecall.protocol.environment import PROCESS_GROUP
from rolecall.protocol.guard import ALLOC_PORTS, AllocPorts, ProcessSpec, StartResult
from rolecall.protocol.worker_methods import DESTROY, DESTROY_MARGIN_S, Destroy
from rolecall.scheduler.guards import GuardProxy, kill
from rolecall.scheduler.supervision import Supervision
from rolecall.scheduler.table import Member, RoleRecord, Table
from rolecall.scheduler.worker_calls import WorkerCalls
from rolecall.transport.client import Client
from rolecall.transport.peer import Call
from rolecall.types import Job, Worker, role_and_index

log = logging.getLogger("rolecall")
FAIL_TOGETHER_S = 1.0  # what fails one worker often fails others, a moment later
MARGIN_S = 30.0  # a guard keeps the start's time limit itself; this is for its answer
KILL_MARGIN_S = 20.0
GROUP_S = 2.0  # after which a restart says what it most likely waits for
WAITS_FOR_GROUP = (
    "the restart of %s waits for an engine to be made: one that joins its process group waits for all ranks of it; "
    "restart the others of role %s too, at the same time, or each with engines=False"
)


@dataclass(frozen=True)
class Ending:
    """How workers are ended.

    Attributes:
        grace_s: Seconds between SIGTERM and SIGKILL.
        destroy_s: Seconds for `destroy()` of engines; 0 leaves it out.
        last_first: One worker after the other, the last of a role first.
    """

    grace_s: float = 0.0
    destroy_s: float = 0.0
    last_first: bool = False


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
        with self._started(record.name, [slot], [guard], record.members) as (new,):
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
        with self._started(record.name, slots, guards) as members:
            return self._enter(record, members)

    @contextlib.contextmanager
    def _started(
        self, role: str, slots: Sequence[Slot], guards: Sequence[GuardProxy], among: Sequence[Member] = ()
    ) -> Iterator[list[Member]]:
        """Starts workers, all ready, and ends them again unless what is done with them succeeds.

        Args:
            guards: `guards[i]` owns the slot of worker i.
            among: All members of their role, when one of them is started again.
        """
        members: list[Member] = []
        try:
            with Waiting(f"starting {len(slots)} worker(s) of role {role} ..."):
                specs = self._specs(slots, guards, among)
                results = self._guards.io.run(_start_all(role, guards, specs, self._guards.start_timeout + MARGIN_S))
            for slot, guard, result in zip(slots, guards, results, strict=True):
                worker = Worker(slot.worker_id, result.ip, [str(p) for p in result.ports])
                members.append(member := Member(worker, slot, guard, result))
                if result.warning:
                    log.warning("%s: %s", member.id, result.warning)
                self._calls.connect(member)
            yield members
        except BaseException as e:
            reason = "its restart failed" if among else "its role was not started"
            for member in members:
                if member.failed is None:
                    member.fail(WorkerFailedError(member.id, reason=reason, pid=member.pid))
            grace_s = self._guards.grace_s if isinstance(e, Exception) else 0.0
            owners = dict(zip((slot.worker_id for slot in slots), guards, strict=True))
            kill(owners, grace_s, grace_s + MARGIN_S)  # frees their ports, too; a lost guard has done so itself
            raise

    def _specs(self, slots: Sequence[Slot], guards: Sequence[GuardProxy], among: Sequence[Member]) -> list[ProcessSpec]:
        """What guards are asked for. The master of a process group is worker 0, at its second port."""
        ports, world = _lease_ports(slots, guards, among), len(among) or len(slots)

        def group(slot: Slot) -> dict[str, str]:
            _, index = role_and_index(slot.worker_id)
            first = among[0].worker if index > 0 and among else Worker("", guards[0].state.ip, [*map(str, ports[0])])
            # LOCAL_RANK is 0 since each worker sees its own devices from 0.
            values = (str(index), str(world), "0", "1", first.ip, first.worker_ports[1])
            return dict(zip(PROCESS_GROUP, values, strict=True))

        return [
            ProcessSpec(
                worker_id=slot.worker_id,
                env={**(group(slot) if slot.process_group else {}), **slot.env},
                argv=list(slot.argv) if slot.argv is not None else None,
                target=slot.target,
                devices=list(slot.devices),
                device_var=self._placement.device_variable,
                cores=slot.cores,
                replicas=world,
                ports=its,
                ready=slot.ready,
                start_timeout=self._guards.start_timeout,
            )
            for slot, its in zip(slots, ports, strict=True)
        ]

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


def _lease_ports(slots: Sequence[Slot], guards: Sequence[GuardProxy], among: Sequence[Member]) -> list[list[int]]:
    """A worker that is started again keeps its ports, unless others have taken them meanwhile."""
    before = {member.id: [int(port) for port in member.worker.worker_ports] for member in among}
    calls = []
    for slot, guard in zip(slots, guards, strict=True):
        wanted = AllocPorts(owner=slot.worker_id, count=slot.port_count, wanted=before.get(slot.worker_id, []))
        calls.append(guard.ask(ALLOC_PORTS, wanted, timeout=MARGIN_S))
    return [call.result().ports for call in calls]


async def _start_all(
    role: str, guards: Sequence[GuardProxy], specs: list[ProcessSpec], timeout: float
) -> list[StartResult]:
    """Every worker's result, or the error of those that failed, without waiting for all others to be ready."""
    by_guard: dict[GuardProxy, list[ProcessSpec]] = defaultdict(list)
    for guard, spec in zip(guards, specs, strict=True):
        by_guard[guard].append(spec)
    results: dict[str, StartResult] = {}
    loop, patience = asyncio.get_running_loop(), asyncio.timeout(None)

    async def start_on(guard: GuardProxy, its: list[ProcessSpec]) -> None:
        async for result in guard.start(its, timeout):
            results[result.worker_id] = result
            if not result.ok and patience.when() is None:
                patience.reschedule(loop.time() + FAIL_TOGETHER_S)

    tasks = [asyncio.ensure_future(start_on(guard, its)) for guard, its in by_guard.items()]
    try:
        async with patience:
            await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        _check(role, results)  # whatever else has ended the start, those that failed are told
    return [results[spec.worker_id] for spec in specs]


def _check(role: str, results: dict[str, StartResult]) -> None:
    """Raises when workers failed, with all of them, and logs each on a line."""
    failed = dict(sorted((role_and_index(w)[1], result) for w, result in results.items() if not result.ok))
    if not failed:
        return
    for result in failed.values():
        where = f"; log: {result.log_path}" if result.log_path else ""
        log.error("worker %s did not start: %s%s", result.worker_id, result.error, where)
    reasons = list(dict.fromkeys(result.error for result in failed.values()))
    tails = {i: result.log_tail for i, result in failed.items()}
    raise WorkerCreationError(role, "; ".join(reasons), list(failed), tails) from None


def destroy_engines(members: Sequence[Member], seconds: float, borrowed_by: str | None = None) -> None:
    """Asks all members at the same time, since ending a process group is a collective; bounded.

    Args:
        seconds: For each engine; with 0 none is asked.
        borrowed_by: The role whose engines alone are meant, as the workers are another's.
    """
    calls: list[tuple[Member, Call]] = []
    for i, member in enumerate(members if seconds else ()):
        engines = [f"{borrowed_by}/{i}"] if borrowed_by is not None else None
        with contextlib.suppress(RolecallError):  # it died meanwhile
            if isinstance(member.conversation, Client):
                wanted, limit = Destroy(engines=engines, timeout=seconds), seconds + DESTROY_MARGIN_S
                calls.append((member, member.conversation.peer.request(DESTROY.name, wanted, timeout=limit)))
    for member, call in calls:
        try:
            log_problems(member.id, call.result())
        except (RolecallError, TimeoutError) as e:
            log.warning("%s: destroy() of its engines was not called: %s", member.id, e)


def log_problems(worker_id: str, problems: Mapping[str, str]) -> None:
    """Logs what `destroy()` of engines ended with, by engine."""
    for engine, problem in problems.items():
        log.warning("%s: engine %s: %s", worker_id, engine, problem)


def end_processes(members: Sequence[Member], how: Ending) -> None:
    """SIGTERM, grace, SIGKILL by the guards, each for its own. What outlives that is logged."""
    grace_ends = time.monotonic() + how.grace_s
    with Waiting(f"ending {', '.join(m.id for m in members[:4])} ..."):
        for group in [[m] for m in reversed(members)] if how.last_first else [members]:
            grace_s = max(0.0, grace_ends - time.monotonic())
            for survivor in kill({m.id: m.guard for m in group}, grace_s, grace_s + KILL_MARGIN_S):
                log.warning("SIGKILL did not end %s; its devices may still be in use", survivor)
