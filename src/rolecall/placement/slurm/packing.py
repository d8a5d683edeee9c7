"""Which worker goes to which node of a Slurm job, and what the job asks of each node. Pure."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce

from rolecall.errors import GPUAllocationError, WorkerConfigurationError
from rolecall.types import SchedulingSpec, worker_id

MIB = 1024


@dataclass(frozen=True)
class Share:
    """A part of a node: what one worker needs, what a node has, or what a job asks of each of its nodes.

    Attributes:
        mem: In MiB. Of a node, 0 means that Slurm does not count its memory; of a request, that none is asked for.
    """

    cpus: int
    mem: int
    gpus: int

    def __str__(self) -> str:
        memory = f", {self.mem / MIB:g} GiB" if self.mem else ""
        return f"{self.cpus} CPU(s){memory}, {self.gpus} device(s)"

    def __add__(self, other: Share) -> Share:
        return Share(self.cpus + other.cpus, self.mem + other.mem, self.gpus + other.gpus)

    def holds(self, other: Share) -> bool:
        """Whether a node like this can give that."""
        return other.cpus <= self.cpus and other.gpus <= self.gpus and (not self.mem or other.mem <= self.mem)


@dataclass(frozen=True)
class Node:
    """A node of the cluster. `address` is where Slurm reaches it."""

    name: str
    address: str
    share: Share


@dataclass(frozen=True)
class Packing:
    """Attributes:
    guards: For each worker the number of its node.
    node: What each node of the job must give: enough for the fullest, since all nodes of a job get the same.
    """

    guards: tuple[int, ...]
    node: Share

    @property
    def nodes(self) -> int:
        return self.guards[-1] + 1


def need(spec: SchedulingSpec) -> Share:
    """What one worker needs. It runs on some CPU even if it asks for none."""
    return Share(max(1, spec.cpu), spec.mem * MIB, spec.gpu)


def pack(needs: Sequence[Share], shape: Share, at_least: int = 1) -> tuple[int, ...]:
    """Fills nodes of one shape in order, each as far as it goes; no other way to keep the order needs fewer.

    Args:
        needs: Each must fit the shape.
        at_least: How many nodes must get a worker; no more than there are workers.
    """
    guards: list[int] = []
    number, used = 0, Share(0, 0, 0)
    for i, share in enumerate(needs):
        used += share
        one_for_each = len(needs) - i < at_least - number  # as many nodes without a worker as workers without a node
        if guards and (one_for_each or not shape.holds(used)):
            number, used = number + 1, share
        guards.append(number)
    return tuple(guards)


def tighten(needs: Sequence[Share], shape: Share, at_least: int = 1) -> Packing:
    """Packs on as few nodes of the shape as it can, and then evenly, so that the job asks each for as little.

    Nine workers on nodes of eight become five and four: a request for twice five, not for twice eight.
    """
    if not shape.mem:
        needs = [replace(share, mem=0) for share in needs]
    fewest = pack(needs, shape, at_least)[-1]
    for part in ("gpus", "cpus", "mem"):  # the scarcest first
        low, high = max(getattr(share, part) for share in needs), getattr(shape, part)
        enough = bisect_left(
            range(low, high), True, key=lambda n: pack(needs, replace(shape, **{part: n}))[-1] <= fewest
        )
        shape = replace(shape, **{part: low + enough})
    guards = pack(needs, shape, at_least)
    assert guards[-1] == fewest
    sums = [reduce(Share.__add__, (s for s, g in zip(needs, guards, strict=True) if g == n)) for n in range(fewest + 1)]
    return Packing(guards, Share(*(max(getattr(s, part) for s in sums) for part in ("cpus", "mem", "gpus"))))


def place(role: str, specs: Sequence[SchedulingSpec], nodes: Sequence[Node], named: int = 0) -> Packing:
    """The packing with the fewest nodes for which the cluster has enough nodes, free or not.

    Args:
        named: How many nodes were named in a list; Slurm wants a job to use them all.

    Raises:
        GPUAllocationError: No node has as many devices as one worker needs, or not enough nodes have.
        WorkerConfigurationError: The same for cores and memory.
    """
    if named > len(specs):
        what = f"role {role!r} has {len(specs)} worker(s), its nodelist names {named} nodes"
        raise WorkerConfigurationError(what, None, "name at most one for each worker, or exclude the others instead")
    needs = [need(spec) for spec in specs]
    shapes = sorted({node.share for node in nodes}, key=lambda s: (s.gpus, s.cpus, s.mem), reverse=True)
    for shape in shapes:
        if all(shape.holds(share) for share in needs):
            packing = tighten(needs, shape, named or 1)
            if sum(node.share.holds(packing.node) for node in nodes) >= packing.nodes:
                return packing
    raise _refusal(role, needs, nodes, shapes)


def _refusal(role: str, needs: Sequence[Share], nodes: Sequence[Node], shapes: Sequence[Share]) -> Exception:
    """Why no packing was found."""
    there = "; ".join(f"{sum(n.share == shape for n in nodes)} node(s) with {shape} each" for shape in shapes)
    seen = f"Slurm lists {there or 'no node here'}"
    for i, share in enumerate(needs):
        if not any(shape.holds(share) for shape in shapes):
            who = worker_id(role, i)
            if shapes and share.gpus > (most := max(shape.gpus for shape in shapes)):
                return GPUAllocationError(share.gpus, [str(n) for n in range(most)], advice=f"{who} needs more; {seen}")
            advice = "ask for less, or choose another partition; cpus_per_node and mem_per_node correct Slurm's figures"
            return WorkerConfigurationError(f"{who} needs a node with {share}; {seen}", None, advice)
    total = sum(share.gpus for share in needs)
    free = sum(shape.gpus for shape in (node.share for node in nodes))
    if total > free:
        return GPUAllocationError(total, [str(n) for n in range(free)], advice=f"ask for fewer; {seen}")
    what = f"role {role!r} with {len(needs)} worker(s) does not fit the cluster; {seen}"
    return WorkerConfigurationError(what, None, "ask for fewer or smaller workers, or choose another partition")
