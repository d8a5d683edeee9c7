"""What a role asks of Ray, as values: placement groups, their bundles, and an actor in a bundle for each worker.

Pure: it never imports ray and knows no cluster.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Literal

from rolecall.errors import WorkerConfigurationError
from rolecall.protocol.ray_driver import Actor, Group, Resources, RoleGroups
from rolecall.types import Job, RayPlacementStrategy, SchedulingSpec, worker_id

Accelerator = Literal["gpu", "npu", "none"]

DEVICE_KEYS: Mapping[Accelerator, str] = {"gpu": "GPU", "npu": "NPU"}
GIB = 1 << 30
LEAST_CPU = 0.001  # Ray refuses a bundle of nothing


@dataclass(frozen=True)
class Asking:
    """How a scheduler asks, the same for all of its roles.

    Attributes:
        prefix: Begins the names of groups and actors; of one run alone.
        per_node: Devices of a node, by which `deferred` groups are split; 0 splits nothing.
        reserve_memory: Ask for the specs' memory too.
        most: What the largest node has of a resource; without those of which a larger node may come.
    """

    prefix: str
    accelerator: Accelerator = "gpu"
    per_node: int = 0
    reserve_memory: bool = False
    most: Mapping[str, float] = field(default_factory=dict)


def place(job: Job, how: Asking) -> RoleGroups:
    """What a job asks for.

    Raises:
        WorkerConfigurationError: Its specs name different strategies, or a worker asks for devices that the cluster
            lacks: for any, or, when it cannot be split, for more than a node has. Cores and memory alike.
    """
    strategy, specs = strategy_of(job), job.specs()
    _check_devices_fit(job, how, strategy)
    workers = [worker_id(job.role, i) for i in range(job.replicas)]
    bundles = [
        _split(spec, how) if strategy == "deferred" else [_bundle(spec.cpu, spec.gpu, spec.mem * GIB, how)]
        for spec in specs
    ]
    _check_bundles_fit(workers, bundles, how.most)
    if strategy == "shared":
        groups = [Group(f"{how.prefix}/{job.role}", tuple(each for (each,) in bundles))]
    else:
        groups = [Group(f"{how.prefix}/{w}", tuple(b)) for w, b in zip(workers, bundles, strict=True)]
    actors = [
        Actor(
            name=f"{how.prefix}/{worker}",
            worker_id=worker,
            group=0 if strategy == "shared" else i,
            bundle=i if strategy == "shared" else 0,
            resources={} if strategy == "deferred" else bundles[i][0],
        )
        for i, worker in enumerate(workers)
    ]
    return RoleGroups(strategy, tuple(groups), tuple(actors))


def strategy_of(job: Job) -> RayPlacementStrategy:
    """The placement strategy of a role.

    Raises:
        WorkerConfigurationError: Its specs name different ones.
    """
    named = {spec.ray_placement_strategy for spec in job.specs()}
    if len(named) > 1:
        what = f"role {job.role!r} mixes placement strategies"
        raise WorkerConfigurationError(what, sorted(named), "give all specs of a job the same one")
    return named.pop()


def held_devices(spec: SchedulingSpec, strategy: RayPlacementStrategy, accelerator: Accelerator) -> int:
    """Devices that a worker sees itself. Those of a `deferred` group are for what its engine starts with Ray."""
    return 0 if strategy == "deferred" or accelerator == "none" else spec.gpu


def described(resources: Resources) -> str:
    """Resources in words: `8 CPU, 2 GPU, 32 GiB memory`."""
    words = [f"{v / GIB:.3g} GiB {k}" if k == "memory" else f"{v:g} {k}" for k, v in resources.items()]
    return ", ".join(words) or "nothing"


def table(wanted: RoleGroups) -> str:
    """A role's groups in words, with their bundles and the guards in them."""

    def rows() -> Iterator[str]:
        for number, group in enumerate(wanted.groups):
            yield f"placement group {group.name} ({group.strategy})"
            for index, bundle in enumerate(group.bundles):
                guests = [a for a in wanted.actors if (a.group, a.bundle) == (number, index)]
                holds = "".join(f"; guard of {a.worker_id} holds {described(a.resources)}" for a in guests)
                yield f"  bundle {index}: {described(bundle)}{holds}"

    return "\n".join(rows())


def shares(total: int, weights: Sequence[int]) -> list[int]:
    """Splits a whole number in proportion to weights, into whole numbers that sum to it."""
    bounds = [0, *accumulate(weights)]
    return [total * high // bounds[-1] - total * low // bounds[-1] for low, high in pairwise(bounds)]


def _split(spec: SchedulingSpec, how: Asking) -> list[Resources]:
    """The bundles of an engine that spans nodes: as many devices in each as a node has, the rest in proportion."""
    full, rest = divmod(spec.gpu, max(how.per_node, 1))
    devices = [how.per_node] * full + [rest] * bool(rest or not full)
    weights = devices if spec.gpu else [1]
    parts = zip(devices, shares(spec.cpu, weights), shares(spec.mem * GIB, weights), strict=True)
    return [_bundle(cpu, gpu, memory, how) for gpu, cpu, memory in parts]


def _bundle(cpu: int, gpu: int, memory: int, how: Asking) -> Resources:
    asked: dict[str, float] = {"CPU": cpu}
    if how.accelerator != "none":
        asked[DEVICE_KEYS[how.accelerator]] = gpu
    if how.reserve_memory:
        asked["memory"] = memory
    return {key: value for key, value in asked.items() if value} or {"CPU": LEAST_CPU}


def _check_devices_fit(job: Job, how: Asking, strategy: RayPlacementStrategy) -> None:
    """Refuses what no node of the cluster can ever hold."""
    if how.accelerator == "none":
        return
    kind = DEVICE_KEYS[how.accelerator]
    for i, spec in enumerate(job.specs()):
        if spec.gpu <= how.per_node or (strategy == "deferred" and how.per_node):
            continue
        what = f"worker {worker_id(job.role, i)} asks for {spec.gpu} {kind}s of one node, and nodes have {how.per_node}"
        expected = "use ray_placement_strategy='deferred' for engines that span nodes, or set n_gpus_per_node"
        if not how.per_node:
            what = f"worker {worker_id(job.role, i)} asks for {spec.gpu} {kind}s, and no node of the cluster has any"
            expected = "set accelerator= to what the nodes have, or n_gpus_per_node= where nodes are added on demand"
        raise WorkerConfigurationError(what, None, expected)


def _check_bundles_fit(
    workers: Sequence[str], bundles: Sequence[Sequence[Resources]], most: Mapping[str, float]
) -> None:
    """Refuses what no node has cores or memory for."""
    for option, key in (("cpu", "CPU"), ("mem", "memory")):
        for worker, its in zip(workers, bundles, strict=True):
            for bundle in its:
                if key in most and bundle.get(key, 0) > most[key]:
                    asked, there = described({key: bundle[key]}), described({key: most[key]})
                    what = f"worker {worker} asks for {asked} of one node, and the largest of the cluster has {there}"
                    raise WorkerConfigurationError(
                        what, None, f"ask for less with {option}=, or add a larger node before the run begins"
                    )
