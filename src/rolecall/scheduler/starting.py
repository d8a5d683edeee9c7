"""Starting a group of workers, all or none, through the guards that own their slots."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from rolecall.errors import WorkerCreationError, WorkerFailedError
from rolecall.placement.plan import Slot, rank_environment
from rolecall.placement.waiting import Waiting
from rolecall.protocol.guard import (
    ALLOC_PORTS,
    KILL,
    RELEASE_PORTS,
    AllocPorts,
    Kill,
    ProcessSpec,
    ReleasePorts,
    StartResult,
)
from rolecall.scheduler.guards import GuardProxy, ask_all
from rolecall.scheduler.table import Member
from rolecall.transport.loop import IOThread
from rolecall.types import Worker

MARGIN_S = 30.0  # a guard keeps the start's time limit itself; this is for its answer


@dataclass
class Group:
    """Workers that start together. `places[i]` is the guard that owns the slot of worker i.

    Attributes:
        ports: What was leased for each of them.
        members: The workers that are ready.
    """

    role: str
    slots: Sequence[Slot]
    places: Sequence[GuardProxy]
    ports: list[list[int]] = field(default_factory=list)
    members: list[Member] = field(default_factory=list)

    def by_guard(self) -> dict[str, list[int]]:
        """Indices of the workers of each guard."""
        found: dict[str, list[int]] = {}
        for i, guard in enumerate(self.places):
            found.setdefault(guard.guard_id, []).append(i)
        return found


class Starter:
    """Starts groups. `connect` makes the conversation with a worker that hosts engines."""

    def __init__(self, io: IOThread, connect: Callable[[Member], None], timeout: float, device_var: str) -> None:
        self._io, self._connect, self._timeout, self._device_var = io, connect, timeout, device_var

    def start(self, group: Group) -> list[Member]:
        """Returns the members, all ready. Whatever it raises, `take_back` is the caller's to call.

        Raises:
            WorkerCreationError: One failed.
        """
        with Waiting(f"starting {len(group.slots)} worker(s) of role {group.role} ..."):
            self._lease_ports(group)
            results = self._io.run(self._start_all(group))
        for i, result in enumerate(results):
            member = _member(group, i, result)
            group.members.append(member)
            if member.slot.argv is None:
                self._connect(member)
        return group.members

    def _lease_ports(self, group: Group) -> None:
        calls = [
            place.ask(ALLOC_PORTS, AllocPorts(owner=slot.worker_id, count=slot.port_count), timeout=MARGIN_S)
            for slot, place in zip(group.slots, group.places, strict=True)
        ]
        group.ports = [call.result().ports for call in calls]

    async def _start_all(self, group: Group) -> list[StartResult]:
        """Every worker's result, or the error of the first that fails, at once and not when the others are ready."""
        results: dict[int, StartResult] = {}
        tasks = [asyncio.ensure_future(self._start_on(group, mine, results)) for mine in group.by_guard().values()]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        return [results[i] for i in range(len(group.slots))]

    async def _start_on(self, group: Group, indices: list[int], results: dict[int, StartResult]) -> None:
        """The workers of one guard."""
        master = _master(group)
        by_id = {group.slots[i].worker_id: i for i in indices}
        specs = [self._spec(group, i, master) for i in indices]
        async for result in group.places[indices[0]].start(specs, self._timeout + MARGIN_S):
            index = by_id[result.worker_id]
            if not result.ok:
                raise WorkerCreationError(group.role, result.error, [index], {index: result.log_tail})
            results[index] = result

    def _spec(self, group: Group, i: int, master: tuple[str, str] | None) -> ProcessSpec:
        slot = group.slots[i]
        return ProcessSpec(
            worker_id=slot.worker_id,
            env={**rank_environment(i, len(group.slots), master), **slot.env},
            argv=list(slot.argv) if slot.argv is not None else None,
            target=slot.target,
            devices=list(slot.devices),
            device_var=self._device_var,
            cores=slot.cores,
            ports=group.ports[i],
            ready=slot.ready,
            start_timeout=self._timeout,
        )


def _master(group: Group) -> tuple[str, str] | None:
    """Address of the process group: worker 0's host and its second port."""
    if len(group.ports[0]) < 2:
        return None
    return group.places[0].ip, str(group.ports[0][1])


def take_back(group: Group) -> None:
    """Kills whatever of the group was started and frees its ports; a lost guard has done so itself."""
    for member in group.members:
        member.fail(WorkerFailedError(member.id, reason="its role was not started", pid=member.pid))
    kills = [
        (group.places[indices[0]], Kill(workers=[group.slots[i].worker_id for i in indices]))
        for indices in group.by_guard().values()
    ]
    reports = ask_all(KILL, kills, MARGIN_S)
    # Ports are leased before the guard is asked for the worker, and it may never have been.
    releases = [
        (guard, ReleasePorts(owner=owner))
        for (guard, _), report in zip(kills, reports, strict=True)
        for owner in (report.unknown if report else ())
    ]
    ask_all(RELEASE_PORTS, releases, MARGIN_S)


def _member(group: Group, i: int, result: StartResult) -> Member:
    slot, place = group.slots[i], group.places[i]
    worker = Worker(slot.worker_id, result.ip, [str(p) for p in result.ports])
    return Member(
        worker=worker,
        slot=slot,
        guard=place,
        pid=result.pid or 0,
        socket=result.socket,
        log_path=result.log_path,
        timeline=result.timeline,
    )
