"""What Slurm and Ray share: each role gets guards of its own, placed by the cluster's manager, which call home.

A backend says how to plan, how to ask for what was planned, and how to look at it and end it again. The rest (waiting
in the queue, devices, ends, why something ended) is here.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from rolecall.errors import WorkerConfigurationError, WorkerCreationError, WorkerTimeoutError
from rolecall.guard.sweep import sweep
from rolecall.placement.exit_causes import ExitCause, ExitCauses
from rolecall.placement.plan import Plan
from rolecall.protocol.guard import SHUTDOWN, Shutdown
from rolecall.protocol.guard_config import GuardConfig
from rolecall.scheduler.guards import GuardProxy, ask_all
from rolecall.scheduler.scheduler import Scheduler
from rolecall.scheduler.waiting import Waiting
from rolecall.types import Job, check_seconds

log = logging.getLogger("rolecall")
LOOK_S = 0.05
SHUTDOWN_MARGIN_S = 5.0
SUBMIT_S = 30.0  # a role that is being asked for while all ends


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
        ...

    def settled(self, plan: Plan, guards: Sequence[GuardProxy]) -> Plan | None:
        """The plan with devices and guards as they were given; None until all that it takes has called home."""
        ...

    def fate(self, ordinal: int) -> ExitCause:
        """What the manager says now became of a guard. It waits for nothing but the manager's answer."""
        ...

    def release(self) -> None:
        """Ends it, in whatever state it is, and proves it gone, bounded. May be called twice."""
        ...


@dataclass(eq=False)
class Placed:
    """A role's allocation and the guards that live, or will live, in it."""

    role: str
    allocation: Allocation
    guards: list[GuardProxy]
    ending: threading.Lock


class ClusterScheduler(Scheduler):
    """Workers on the hosts of a cluster.

    Args:
        ip: The controller's address as the cluster's hosts see it; found out when None.
        queue_timeout: Seconds that a role may wait for its place in the cluster; None waits for ever. Time to start
            (`start_timeout`) is counted from then on.
        options: Those of `Scheduler`.
    """

    def __init__(self, *, ip: str | None = None, queue_timeout: float | None = None, **options: Any) -> None:
        if queue_timeout is not None:
            check_seconds("queue_timeout", queue_timeout)
        self._ip, self._queue_timeout = ip, queue_timeout
        self._placed: dict[str, Placed] = {}
        self._made = 0
        self._placing, self._asking = threading.Condition(), 0
        super().__init__(**options)

    # What a backend says and does.

    @abstractmethod
    def _join(self) -> str:
        """Gets in touch with the cluster's manager; returns this host's address in the cluster."""

    def _leave(self) -> None:
        """Takes back what `_join` did. Nothing is placed any more."""

    @abstractmethod
    def _submit(self, name: str, plan: Plan, config: GuardConfig) -> Allocation:
        """Asks for what the plan says and returns at once, or raises and leaves nothing.

        Args:
            name: Guard `n` of the plan must call itself `<name>-<n>`.
            config: Its configuration, with `name` for an id.
        """

    # What the scheduler asks of a backend.

    def _begin(self) -> None:
        with contextlib.ExitStack() as undo:
            self._fates = ExitCauses(self._fate, self._io)
            undo.callback(self._fates.close)
            self._watch.explain = self._fates.explain
            undo.callback(self._leave)
            found = self._join()
            self._listen(self._ip or found)
            undo.pop_all()

    def _listen(self, ip: str) -> None:
        try:
            self._hub.listen(ip)
        except OSError as e:
            what = f"the controller cannot listen on {ip}: {e.strerror or e}"
            raise WorkerConfigurationError(
                what, None, "pass an address of this host that the cluster reaches: ip=..."
            ) from e

    def _place(self, job: Job) -> tuple[Plan, list[GuardProxy]]:
        plan = self._plan(job)
        placed = self._ask_for(plan)
        plan = self._await(placed, plan)
        for n, guard in enumerate(placed.guards):
            if n in plan.guards:
                guard.check()
            else:
                self._hub.forget(guard)
        return plan, [placed.guards[n] for n in plan.guards]

    def _ask_for(self, plan: Plan) -> Placed:
        with self._submitting(plan.role) as name:
            guards = [self._hub.expect(f"{name}-{n}", self._fates.explain) for n in range(max(plan.guards) + 1)]
            allocation: Allocation | None = None
            try:
                allocation = self._submit(name, plan, self._guard_config(name))
                placed = self._placed[plan.role] = Placed(plan.role, allocation, guards, threading.Lock())
            except BaseException:  # Ctrl-C too, which may come between the two
                if allocation is not None:
                    allocation.release()
                for guard in guards:
                    self._hub.forget(guard)
                raise
        if self._closed:  # and may not have seen it
            raise WorkerCreationError(plan.role, "the scheduler was closed meanwhile")
        return placed

    @contextlib.contextmanager
    def _submitting(self, role: str) -> Iterator[str]:
        """A name for the guards; `close` waits for the end of this, so that it sees all that there is to end."""
        with self._placing:
            if self._closed:
                raise WorkerCreationError(role, "the scheduler was closed meanwhile")
            self._made += 1
            self._asking += 1
            name = f"g{self._made}"
        try:
            yield name
        finally:
            with self._placing:
                self._asking -= 1
                self._placing.notify_all()

    def _await(self, placed: Placed, plan: Plan) -> Plan:
        """Returns the plan as it was filled, when its guards have called home.

        Raises:
            WorkerTimeoutError: Too long in the queue, or too long to start.
            WorkerCreationError: The manager ended it.
        """
        since, running = time.monotonic(), False
        with Waiting(f"requesting an allocation for role {placed.role} ...") as waiting:
            while (settled := placed.allocation.settled(plan, placed.guards)) is None:
                standing = placed.allocation.poll()
                if standing.state == "ended":
                    raise WorkerCreationError(placed.role, f"its allocation has ended: {standing.reason}")
                if standing.state == "running" and not running:
                    since, running = time.monotonic(), True
                waited = time.monotonic() - since
                self._check_patience(placed, standing, waited)
                waiting.say(_progress(placed, standing))
                time.sleep(LOOK_S)
        return settled

    def _check_patience(self, placed: Placed, standing: AllocationStatus, waited: float) -> None:
        what = f"role {placed.role}"
        if standing.state == "queued" and self._queue_timeout is not None and waited > self._queue_timeout:
            why = standing.reason or "the cluster gives no reason"
            raise WorkerTimeoutError(what, self._queue_timeout, "allocation", why)
        if standing.state == "running" and waited > self._start_timeout:
            there = ", ".join(g.guard_id for g in placed.guards if g.hello) or "none"
            where = " or ".join(self._hub.addresses[1:])
            hint = f"connected: {there}; can the nodes reach {where} (ip=...)? logs: {self.run_dir}/logs"
            raise WorkerTimeoutError(what, self._start_timeout, "connection from its guards", hint)

    def _withdraw(self, members: Sequence[str], role: str) -> None:
        placed = self._placed.get(role)
        if placed is not None:
            self._end(placed, self._grace_s)

    def _end(self, placed: Placed, grace_s: float) -> None:
        with placed.ending, Waiting(f"releasing the allocation of role {placed.role} ..."):
            for guard in placed.guards:
                guard.ending = True
            there = [guard for guard in placed.guards if guard.hello and guard.lost is None]
            ask_all(SHUTDOWN, [(guard, Shutdown(grace_s=grace_s)) for guard in there], grace_s + SHUTDOWN_MARGIN_S)
            placed.allocation.release()
            if self._placed.get(placed.role) is placed:
                del self._placed[placed.role]
                for guard in placed.guards:
                    self._hub.forget(guard)

    def _end_guards(self, *, graceful: bool) -> None:
        with contextlib.ExitStack() as ends:
            ends.callback(sweep, self._run.run_id)
            ends.callback(self._fates.close)
            ends.callback(self._leave)
            with self._placing:
                self._placing.wait_for(lambda: not self._asking, SUBMIT_S)
            left = list(self._placed.values())
            if left:
                with ThreadPoolExecutor(min(len(left), 16), thread_name_prefix="rolecall-ends") as pool:
                    list(pool.map(lambda placed: self._end(placed, self._grace_s if graceful else 0.0), left))

    def _fate(self, guard: GuardProxy) -> ExitCause:
        for placed in list(self._placed.values()):
            if guard in placed.guards:
                return placed.allocation.fate(placed.guards.index(guard))
        return ExitCause(ended=True)


def _progress(placed: Placed, standing: AllocationStatus) -> str:
    if standing.state == "queued":
        return f"role {placed.role} waits for its allocation" + (f": {standing.reason}" if standing.reason else "")
    there = sum(guard.hello is not None for guard in placed.guards)
    return f"role {placed.role}: {there} of {len(placed.guards)} guard(s) have connected ..."
