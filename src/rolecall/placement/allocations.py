"""What Slurm and Ray share: each role gets an allocation of the cluster's manager, and guards of its own in it.

A backend says how to plan, how to ask for what was planned, and how to look at it and end it again. The rest (waiting
in the queue, guards, ends, asking why something ended) is here.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from abc import abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, Literal, NamedTuple, Protocol, TypeVar

from rolecall.errors import WorkerCreationError, WorkerTimeoutError
from rolecall.placement.base import ExpectedGuard, Placed, Placement, PlacementContext
from rolecall.placement.plan import Plan
from rolecall.placement.waiting import Waiting
from rolecall.protocol.guard_config import GuardConfig
from rolecall.transport.loop import IOThread
from rolecall.transport.threads import at_once
from rolecall.types import Job, check_seconds

log = logging.getLogger("rolecall")
LOOK_S = 0.05
ASK_S = 0.25  # between two questions to a manager
SUBMIT_S = 30.0  # a role that is being asked for while all ends


class ExitCause(NamedTuple):
    """What a cluster's manager says became of a guard.

    Attributes:
        ended: False while the manager says that it runs.
        reason: Why, as far as it says.
        final: It will not say more.
    """

    ended: bool
    reason: str = ""
    final: bool = True


RUNS = ExitCause(ended=False)


@dataclass(frozen=True)
class AllocationStatus:
    """Where an allocation stands.

    Attributes:
        reason: Why it waits, or why it has ended, in the manager's words.
    """

    state: Literal["queued", "running", "ended"]
    reason: str = ""


class Allocation(Protocol):
    """What a cluster's manager gives, or will give, for one role. Methods may be called from any thread."""

    def poll(self) -> AllocationStatus:
        """Where it stands. Asked often while its guards are awaited, so what costs the manager something is kept."""

    def settled(self, plan: Plan, guards: Sequence[ExpectedGuard]) -> Plan | None:
        """The plan with devices and guards as they were given; None until all that it takes have connected."""

    def exit_cause(self, ordinal: int) -> ExitCause:
        """What the manager says now became of a guard. It waits for nothing but the manager's answer."""

    def release(self) -> None:
        """Ends it, in whatever state it is, and proves it gone, bounded. May be called twice."""


P = TypeVar("P", bound=Plan)


@dataclass(eq=False)
class RoleAllocation:
    """A role's allocation and the guards that live, or will live, in it."""

    role: str
    allocation: Allocation
    guards: list[ExpectedGuard]
    ending: threading.Lock


class ClusterPlacement(Placement, Generic[P]):
    """A backend that asks a cluster's manager for an allocation for each role. It calls `_begin` when it is open.

    Args:
        ip: The controller's address as the cluster's hosts see it; found out when None.
        queue_timeout: Seconds that a role may wait for its place in the cluster; None waits for ever. Time to start is
            counted from then on.
    """

    def __init__(self, ip: str | None, queue_timeout: float | None) -> None:
        if queue_timeout is not None:
            check_seconds("queue_timeout", queue_timeout)
        self._ip, self._queue_timeout = ip, queue_timeout
        self._of_roles: dict[str, RoleAllocation] = {}
        self._made = 0
        self._submits, self._submitting_now = threading.Condition(), 0

    @abstractmethod
    def plan(self, job: Job) -> P: ...

    @abstractmethod
    def _submit(self, plan: P, name: str, config: GuardConfig) -> Allocation:
        """Asks for what a plan says and returns at once, or raises and leaves nothing.

        Args:
            name: Guard `n` of the plan must call itself `<name>-<n>`.
            config: The guards' configuration, with `name` for an id.
        """

    def _begin(self, context: PlacementContext, address: str) -> None:
        """From here on roles can be placed. `address`: this host's in the cluster, as far as the backend knows."""
        context.listen(self._ip or address)
        self._context, self._causes = context, ExitCauses(self._exit_cause, context.io)

    def place(self, job: Job) -> Placed:
        """Asks for what the plan says, and waits for its guards.

        Raises:
            WorkerTimeoutError: Too long in the queue, or too long to start.
            WorkerCreationError: The manager ended it.
        """
        asked = self.plan(job)
        its = self._submitted(asked)
        plan = self._await(its, asked)
        for n, guard in enumerate(its.guards):
            if n in plan.guards:
                guard.check()
            else:
                self._context.forget(guard)
        return Placed(plan, [its.guards[n].guard_id for n in plan.guards])

    def release(self, role: str) -> None:
        if (its := self._of_roles.get(role)) is not None:
            self._end(its, self._context.grace_s)

    def close(self, *, graceful: bool) -> None:
        """Ends all allocations, also one that is being asked for."""
        with contextlib.ExitStack() as ends:
            ends.callback(self._causes.close)
            with self._submits:
                self._submits.wait_for(lambda: not self._submitting_now, SUBMIT_S)
            at_once(lambda its: self._end(its, self._context.grace_s if graceful else 0.0), self._of_roles.values())

    def _submitted(self, plan: P) -> RoleAllocation:
        """Asks for what a plan says; `close` waits for the end of this, so that it sees all that there is to end."""
        with self._submits:
            self._check_wanted(plan.role)
            self._made += 1
            self._submitting_now += 1
            name = f"g{self._made}"
        allocation: Allocation | None = None
        guards: list[ExpectedGuard] = []
        try:
            guards += [self._context.expect(f"{name}-{n}", self._causes.explain) for n in range(max(plan.guards) + 1)]
            allocation = self._submit(plan, name, self._context.guard_config(name))
            its = self._of_roles[plan.role] = RoleAllocation(plan.role, allocation, guards, threading.Lock())
        except BaseException:  # Ctrl-C too, which may come between the two
            if allocation is not None:
                allocation.release()
            for guard in guards:
                self._context.forget(guard)
            raise
        finally:
            with self._submits:
                self._submitting_now -= 1
                self._submits.notify_all()
        self._check_wanted(plan.role)  # whoever ends all may not have seen it
        return its

    def _check_wanted(self, role: str) -> None:
        if self._context.closing:
            raise WorkerCreationError(role, "the scheduler was closed meanwhile")

    def _await(self, its: RoleAllocation, plan: Plan) -> Plan:
        """Returns the plan as it was filled, when its guards have connected."""
        since, running = time.monotonic(), False
        with contextlib.ExitStack() as ends:
            waiting = ends.enter_context(Waiting(f"requesting an allocation for role {its.role} ..."))
            ends.callback(self._context.waits, its.role, "")
            while (settled := its.allocation.settled(plan, its.guards)) is None:
                status = its.allocation.poll()
                if status.state == "ended":
                    raise WorkerCreationError(its.role, f"its allocation has ended: {status.reason}")
                if status.state == "running" and not running:
                    since, running = time.monotonic(), True
                for guard in its.guards:
                    guard.check()  # one that has connected may be lost while others are awaited
                self._check_patience(its, status, time.monotonic() - since)
                waiting.say(said := _progress(its, status))
                self._context.waits(its.role, said)
                time.sleep(LOOK_S)
        return settled

    def _check_patience(self, its: RoleAllocation, status: AllocationStatus, waited: float) -> None:
        what, start_timeout = f"role {its.role}", self._context.start_timeout
        if status.state == "queued" and self._queue_timeout is not None and waited > self._queue_timeout:
            why = status.reason or "the cluster gives no reason"
            raise WorkerTimeoutError(what, self._queue_timeout, "allocation", why)
        if status.state == "running" and waited > start_timeout:
            there = ", ".join(g.guard_id for g in its.guards if g.connected) or "none"
            where = " or ".join(self._context.addresses[1:])
            hint = f"connected: {there}; can the nodes reach {where} (ip=...)? logs: {self._context.run_dir}/logs"
            raise WorkerTimeoutError(what, start_timeout, "connection from its guards", hint)

    def _end(self, its: RoleAllocation, grace_s: float) -> None:
        with its.ending, Waiting(f"releasing the allocation of role {its.role} ..."):
            self._context.shut_down(its.guards, grace_s)
            its.allocation.release()
            if self._of_roles.get(its.role) is its:
                del self._of_roles[its.role]
                for guard in its.guards:
                    self._context.forget(guard)

    def _exit_cause(self, guard: ExpectedGuard) -> ExitCause:
        for its in list(self._of_roles.values()):
            if guard in its.guards:
                return its.allocation.exit_cause(its.guards.index(guard))
        return ExitCause(ended=True)


def _progress(its: RoleAllocation, status: AllocationStatus) -> str:
    if status.state == "queued":
        return f"role {its.role} waits for its allocation" + (f": {status.reason}" if status.reason else "")
    there = sum(guard.connected for guard in its.guards)
    return f"role {its.role}: {there} of {len(its.guards)} guard(s) have connected ..."


class ExitCauses:
    """Why guards have ended, in the words of the manager that may have ended them.

    One thread asks for all, one after the other: they have one manager, which is asked no more often for more of them.

    Args:
        ask: What the manager says of a guard.
        io: Answers are delivered there.
    """

    def __init__(self, ask: Callable[[ExpectedGuard], ExitCause], io: IOThread) -> None:
        self._ask_manager, self._io = ask, io
        self._asking = ThreadPoolExecutor(1, "rolecall-exit-causes")
        self._open: set[asyncio.Task[None]] = set()
        self._closing = False

    def explain(self, guard: ExpectedGuard, then: Callable[[str], None], *, patient: bool, limit_s: float) -> None:
        """Has `then` called, once, on the I/O thread, with what became of a guard or of what it owned.

        Args:
            patient: The guard has ended for sure: give the manager time to notice.
            limit_s: After so many seconds `then` gets what is known by then, whatever the manager does.
        """

        def begin() -> None:
            task = self._io.loop.create_task(self._explain(guard, then, patient, limit_s))
            self._open.add(task)
            task.add_done_callback(self._open.discard)

        self._io.call_soon(begin)

    def close(self) -> None:
        """Answers what is still asked, with what is known. May be called twice."""
        self._io.run(self._answer_all())
        self._asking.shutdown(cancel_futures=True)

    async def _answer_all(self) -> None:
        self._closing = True
        for task in self._open:
            task.cancel()
        if self._open:
            await asyncio.wait(self._open)

    async def _explain(self, guard: ExpectedGuard, then: Callable[[str], None], patient: bool, limit_s: float) -> None:
        reason = ""
        # RuntimeError: there is no further thread to ask on. The caller learns of the loss all the same.
        with contextlib.suppress(TimeoutError, asyncio.CancelledError, RuntimeError):
            async with asyncio.timeout(limit_s):
                while not self._closing:
                    cause = await self._io.loop.run_in_executor(self._asking, self._look, guard)
                    reason = cause.reason or reason
                    if cause.final and (cause.ended or not patient):
                        break
                    await asyncio.sleep(ASK_S)
        then(reason)

    def _look(self, guard: ExpectedGuard) -> ExitCause:
        try:
            return self._ask_manager(guard)
        except Exception as e:  # whatever the manager's tools do, the caller must learn of the loss
            log.info("guard %s: its cluster did not say what became of it: %s", guard.guard_id, e)
            return ExitCause(ended=True, final=False)  # it may say so yet
