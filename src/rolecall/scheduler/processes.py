"""Starting workers of a role, all or none, through the guards that own their slots, and ending them, seen dead."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from rolecall.errors import RolecallError, WorkerCreationError, WorkerFailedError
from rolecall.placement.plan import Slot, process_group
from rolecall.placement.waiting import Waiting
from rolecall.protocol.guard import ALLOC_PORTS, AllocPorts, ProcessSpec, StartResult
from rolecall.protocol.worker_methods import DESTROY, Destroy
from rolecall.scheduler.guards import GuardProxy, kill
from rolecall.scheduler.table import Member
from rolecall.transport.client import Client
from rolecall.transport.loop import IOThread
from rolecall.transport.peer import Call
from rolecall.types import Worker, role_and_index

log = logging.getLogger("rolecall")
FAIL_TOGETHER_S = 1.0  # what fails one worker often fails others, a moment later
MARGIN_S = 30.0  # a guard keeps the start's time limit itself; this is for its answer
DESTROY_MARGIN_S = 1.0
KILL_MARGIN_S = 20.0


class Group:
    """Workers that start together. `guards[i]` owns the slot of worker i.

    Args:
        among: All members of their role, when one of them is started again.

    Attributes:
        members: The workers that are ready.
    """

    def __init__(
        self, role: str, slots: Sequence[Slot], guards: Sequence[GuardProxy], among: Sequence[Member] = ()
    ) -> None:
        self._role, self._slots, self._guards, self._among = role, slots, guards, among
        self.members: list[Member] = []

    def start(
        self, io: IOThread, connect: Callable[[Member], None], timeout: float, device_variable: str
    ) -> list[Member]:
        """Returns the members, all ready. Whatever it raises, `rollback` is the caller's to call.

        Args:
            connect: Makes the conversation with a worker that may host engines.

        Raises:
            WorkerCreationError: One failed.
        """
        with Waiting(f"starting {len(self._slots)} worker(s) of role {self._role} ..."):
            specs = self._specs(self._lease_ports(), timeout, device_variable)
            results = io.run(self._start_all(specs, timeout + MARGIN_S))
        for slot, guard, result in zip(self._slots, self._guards, results, strict=True):
            worker = Worker(slot.worker_id, result.ip, [str(p) for p in result.ports])
            self.members.append(member := Member(worker, slot, guard, result))
            if result.warning:
                log.warning("%s: %s", member.id, result.warning)
            connect(member)
        return self.members

    def rollback(self, grace_s: float) -> None:
        """Ends whatever of it was started and frees its ports; a lost guard has done so itself."""
        reason = "its restart failed" if self._among else "its role was not started"
        for member in self.members:
            if member.failed is None:
                member.fail(WorkerFailedError(member.id, reason=reason, pid=member.pid))
        owners = {slot.worker_id: guard for slot, guard in zip(self._slots, self._guards, strict=True)}
        kill(owners, grace_s, grace_s + MARGIN_S)

    def _lease_ports(self) -> list[list[int]]:
        """A worker that is started again keeps its ports, unless others have taken them meanwhile."""
        before = {member.id: [int(port) for port in member.worker.worker_ports] for member in self._among}
        calls = []
        for slot, guard in zip(self._slots, self._guards, strict=True):
            wanted = AllocPorts(owner=slot.worker_id, count=slot.port_count, wanted=before.get(slot.worker_id, []))
            calls.append(guard.ask(ALLOC_PORTS, wanted, timeout=MARGIN_S))
        return [call.result().ports for call in calls]

    def _specs(self, ports: list[list[int]], timeout: float, device_variable: str) -> list[ProcessSpec]:
        world = len(self._among) or len(self._slots)
        return [
            ProcessSpec(
                worker_id=slot.worker_id,
                env={**self._process_group(slot, world, ports[0]), **slot.env},
                argv=list(slot.argv) if slot.argv is not None else None,
                target=slot.target,
                devices=list(slot.devices),
                device_var=device_variable,
                cores=slot.cores,
                replicas=world,
                ports=ports[i],
                ready=slot.ready,
                start_timeout=timeout,
            )
            for i, slot in enumerate(self._slots)
        ]

    def _process_group(self, slot: Slot, world: int, first_ports: list[int]) -> dict[str, str]:
        """Its master is worker 0, at its second port."""
        if not slot.process_group:
            return {}
        _, index = role_and_index(slot.worker_id)
        if index > 0 and self._among:
            first = self._among[0].worker
            return process_group(index, world, first.ip, first.worker_ports[1])
        return process_group(index, world, self._guards[0].state.ip, str(first_ports[1]))

    async def _start_all(self, specs: list[ProcessSpec], timeout: float) -> list[StartResult]:
        """Every worker's result, or the error of those that failed, without waiting for all others to be ready."""
        by_guard: dict[GuardProxy, list[ProcessSpec]] = defaultdict(list)
        for guard, spec in zip(self._guards, specs, strict=True):
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
            self._check(results)  # whatever else has ended the start, those that failed are told
        return [results[spec.worker_id] for spec in specs]

    def _check(self, results: dict[str, StartResult]) -> None:
        """Raises when workers failed, with all of them, and logs each on a line."""
        failed = dict(sorted((role_and_index(w)[1], result) for w, result in results.items() if not result.ok))
        if not failed:
            return
        for result in failed.values():
            where = f"; log: {result.log_path}" if result.log_path else ""
            log.error("worker %s did not start: %s%s", result.worker_id, result.error, where)
        reasons = list(dict.fromkeys(result.error for result in failed.values()))
        tails = {i: result.log_tail for i, result in failed.items()}
        raise WorkerCreationError(self._role, "; ".join(reasons), list(failed), tails)


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


def destroy_engines(members: Sequence[Member], seconds: float, borrowed_by: str | None = None) -> None:
    """Asks all members at the same time, since ending a process group is a collective; bounded.

    Args:
        seconds: For each engine; with 0 none is asked.
        borrowed_by: The role whose engines alone are meant, as the workers are another's.
    """
    calls: list[tuple[Member, Call]] = []
    for i, member in enumerate(members if seconds else ()):
        engines = [f"{borrowed_by}/{i}"] if borrowed_by is not None else None
        with suppress(RolecallError):  # it died meanwhile
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
