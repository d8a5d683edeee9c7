"""What a role asks of Ray, as values."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rolecall import Job, SchedulingSpec
from rolecall.errors import WorkerConfigurationError
from rolecall.placement.ray.groups import GIB, LEAST_CPU, Asking, held_devices, place, shares, table
from rolecall.protocol.ray_driver import RoleGroups

HOW = Asking("rc/1", per_node=8)
NPU = Asking("rc/1", accelerator="npu", per_node=8)
NO_DEVICES = Asking("rc/1", accelerator="none")


def spec(cpu: int, gpu: int = 0, mem: int = 32, strategy: Any = "shared") -> SchedulingSpec:
    return SchedulingSpec(cpu=cpu, gpu=gpu, mem=mem, ray_placement_strategy=strategy)


def bundles(placement: RoleGroups) -> list[list[dict[str, float]]]:
    return [[dict(bundle) for bundle in group.bundles] for group in placement.groups]


CASES = [
    ("shared", [spec(4, 2)] * 2, HOW, [[{"CPU": 4, "GPU": 2}, {"CPU": 4, "GPU": 2}]]),
    ("shared, unequal", [spec(4, 2), spec(1)], HOW, [[{"CPU": 4, "GPU": 2}, {"CPU": 1}]]),
    ("separate", [spec(4, 1, strategy="separate")] * 2, HOW, [[{"CPU": 4, "GPU": 1}], [{"CPU": 4, "GPU": 1}]]),
    ("deferred, one node", [spec(4, 8, strategy="deferred")], HOW, [[{"CPU": 4, "GPU": 8}]]),
    ("deferred, two nodes", [spec(10, 16, strategy="deferred")], HOW, [[{"CPU": 5, "GPU": 8}] * 2]),
    (
        "deferred, a part of the last node",
        [spec(12, 20, strategy="deferred")],
        HOW,
        [[{"CPU": 4, "GPU": 8}, {"CPU": 5, "GPU": 8}, {"CPU": 3, "GPU": 4}]],
    ),
    ("deferred, fewer cores than nodes", [spec(1, 16, strategy="deferred")], HOW, [[{"GPU": 8}, {"CPU": 1, "GPU": 8}]]),
    ("deferred, no devices", [spec(4, strategy="deferred")], HOW, [[{"CPU": 4}]]),
    ("deferred for each", [spec(2, 16, strategy="deferred")] * 2, HOW, [[{"CPU": 1, "GPU": 8}] * 2] * 2),
    ("npu", [spec(4, 2)], NPU, [[{"CPU": 4, "NPU": 2}]]),
    ("npu, deferred", [spec(4, 16, strategy="deferred")], NPU, [[{"CPU": 2, "NPU": 8}] * 2]),
    ("a cluster without devices", [spec(4, 2)], NO_DEVICES, [[{"CPU": 4}]]),
    ("nothing at all", [spec(0)], HOW, [[{"CPU": LEAST_CPU}]]),
    ("memory", [spec(4, 0, 3)], Asking("p", reserve_memory=True), [[{"CPU": 4, "memory": 3 * GIB}]]),
]


@pytest.mark.parametrize(("specs", "how", "expected"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_bundles(specs: list[SchedulingSpec], how: Asking, expected: list[list[dict[str, float]]]) -> None:
    """A strategy and specs give these groups of bundles."""
    assert bundles(place(Job("actor", len(specs), specs), how)) == expected


def test_names_are_of_the_run_the_role_and_the_index() -> None:
    """Placement groups and actors are named after run, role and worker."""
    shared = place(Job("actor", 2), Asking("rc/1"))
    assert [group.name for group in shared.groups] == ["rc/1/actor"]
    assert [actor.name for actor in shared.actors] == ["rc/1/actor/0", "rc/1/actor/1"]
    separate = place(Job("rollout", 2, [spec(1, strategy="separate")]), Asking("rc/1"))
    assert [group.name for group in separate.groups] == ["rc/1/rollout/0", "rc/1/rollout/1"]


def test_a_shared_worker_has_its_own_bundle_and_holds_all_of_it() -> None:
    """Each worker's guard holds all resources of its bundle."""
    placement = place(Job("actor", 3, [spec(4, 2)]), HOW)
    assert [(actor.group, actor.bundle) for actor in placement.actors] == [(0, 0), (0, 1), (0, 2)]
    assert all(actor.resources == {"CPU": 4, "GPU": 2} for actor in placement.actors)


def test_the_guard_of_a_deferred_worker_takes_nothing_from_its_group() -> None:
    """All of the group is for the actors that the engine makes; the worker itself sees no device."""
    job = Job("rollout", 2, [spec(8, 16, strategy="deferred")])
    placement = place(job, HOW)
    assert [(actor.group, actor.bundle) for actor in placement.actors] == [(0, 0), (1, 0)]
    assert all(actor.resources == {} for actor in placement.actors)
    assert held_devices(job.specs()[0], "deferred", "gpu") == 0


def test_mixed_strategies_are_refused() -> None:
    """Workers of one role have the same placement strategy."""
    with pytest.raises(
        WorkerConfigurationError, match=r"role 'actor' mixes placement strategies: \['separate', 'shared'\]"
    ):
        place(Job("actor", 2, [spec(1), spec(1, strategy="separate")]), HOW)


def test_an_unknown_strategy_is_refused() -> None:
    """The error lists the strategies that exist."""
    with pytest.raises(WorkerConfigurationError, match="shared, separate, deferred"):
        spec(1, strategy="spread")


def test_a_worker_larger_than_a_node_is_told_to_span_nodes() -> None:
    """The error names the strategy `deferred`."""
    with pytest.raises(WorkerConfigurationError, match=r"actor/0 asks for 16 GPUs of one node.* have 8.*'deferred'"):
        place(Job("actor", 1, [spec(1, 16)]), HOW)


@pytest.mark.parametrize("strategy", ["shared", "separate", "deferred"])
def test_devices_that_the_cluster_lacks_are_refused(strategy: str) -> None:
    """At once, with the options by which it may be otherwise."""
    lacking = Asking("rc/1", accelerator="npu")
    with pytest.raises(WorkerConfigurationError, match=r"actor/0 asks for 1 NPUs, and no node .* set accelerator="):
        place(Job("actor", 1, [spec(1, 1, strategy=strategy)]), lacking)
    assert place(Job("actor", 1, [spec(1, strategy=strategy)]), lacking).groups


def test_cores_and_memory_that_no_node_has_are_refused() -> None:
    """With the option that asks for them; on a cluster that may grow nothing is known of the largest node."""
    small = Asking("rc/1", reserve_memory=True, most={"CPU": 2, "memory": 8 * GIB})
    with pytest.raises(WorkerConfigurationError, match=r"actor/0 asks for 8 CPU .* largest .* has 2 CPU.* cpu="):
        place(Job("actor", 1, [spec(8, 0, 4)]), small)
    with pytest.raises(WorkerConfigurationError, match=r"asks for 32 GiB memory .* has 8 GiB memory.* mem="):
        place(Job("actor", 1, [spec(1, 0, 32)]), small)
    assert place(Job("actor", 1, [spec(1, 0, 4)]), small).groups
    assert place(Job("actor", 1, [spec(8, 0, 32)]), Asking("rc/1", reserve_memory=True)).groups


def test_a_placement_prints_what_it_asks_for() -> None:
    """Groups, bundles and guards are printed with their resources."""
    text = table(place(Job("actor", 1, [spec(4, 2)]), HOW))
    assert text == ("placement group rc/1/actor (PACK)\n  bundle 0: 4 CPU, 2 GPU; guard of actor/0 holds 4 CPU, 2 GPU")


sizes = st.integers(0, 200)


@given(cpu=sizes, gpu=sizes, mem=sizes, per_node=st.integers(1, 16))
def test_a_split_loses_and_adds_nothing(cpu: int, gpu: int, mem: int, per_node: int) -> None:
    """The bundles of a deferred group sum to its spec, and none is larger than a node."""
    how = Asking("p", per_node=per_node, reserve_memory=True)
    (found,) = bundles(place(Job("a", 1, [spec(cpu, gpu, mem, "deferred")]), how))
    total = {key: sum(bundle.get(key, 0) for bundle in found) for key in ("GPU", "memory")}
    assert total == {"GPU": gpu, "memory": mem * GIB}
    assert sum(bundle.get("CPU", 0) for bundle in found) == (cpu or (LEAST_CPU if not gpu and not mem else 0))
    assert all(bundle.get("GPU", 0) <= per_node for bundle in found)
    assert all(found)


@given(total=sizes, weights=st.lists(st.integers(1, 20), min_size=1))
def test_shares_are_in_proportion(total: int, weights: list[int]) -> None:
    """Each share is less than one away from its exact part, and all together are the whole."""
    found = shares(total, weights)
    assert sum(found) == total
    assert all(abs(part - total * weight / sum(weights)) < 1 for part, weight in zip(found, weights, strict=True))
