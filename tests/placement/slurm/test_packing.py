"""Workers are packed onto nodes: nobody over capacity, the order kept, all placed, nothing asked for without need."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from rolecall import SchedulingSpec
from rolecall.errors import GPUAllocationError, WorkerConfigurationError
from rolecall.placement.slurm.packing import Node, Packing, Share, need, pack, place, tighten

SHARES = st.builds(Share, st.integers(1, 16), st.integers(0, 64), st.integers(0, 4))
SHAPES = st.builds(Share, st.integers(16, 64), st.integers(64, 256), st.integers(4, 8))


def sums(needs: list[Share], guards: tuple[int, ...]) -> list[Share]:
    """What each node has to give."""
    found = [Share(0, 0, 0)] * (guards[-1] + 1)
    for share, guard in zip(needs, guards, strict=True):
        found[guard] += share
    return found


def fewest(needs: list[Share], shape: Share) -> int:
    """By trying every cut of the row, as a check on the greedy way."""
    best = [0] + [len(needs) + 1] * len(needs)
    for end in range(1, len(needs) + 1):
        used = Share(0, 0, 0)
        for begin in range(end, 0, -1):
            used += needs[begin - 1]
            if not shape.holds(used):
                break
            best[end] = min(best[end], best[begin - 1] + 1)
    return best[-1]


@given(st.lists(SHARES, min_size=1, max_size=40), SHAPES)
def test_all_are_placed_in_order_and_no_node_is_asked_for_more_than_it_has(needs: list[Share], shape: Share) -> None:
    guards = pack(needs, shape)
    assert len(guards) == len(needs)
    assert guards[0] == 0
    assert all(b - a in (0, 1) for a, b in pairwise(guards))
    assert all(shape.holds(used) for used in sums(needs, guards))


@given(st.lists(SHARES, min_size=1, max_size=25), SHAPES)
def test_no_other_way_to_keep_the_order_needs_fewer_nodes(needs: list[Share], shape: Share) -> None:
    assert pack(needs, shape)[-1] + 1 == fewest(needs, shape)


@given(st.lists(SHARES, min_size=1, max_size=40), SHAPES)
def test_tightening_asks_for_as_many_nodes_and_for_no_more_of_any_of_them(needs: list[Share], shape: Share) -> None:
    loose, tight = pack(needs, shape), tighten(needs, shape)
    assert tight.nodes == loose[-1] + 1
    assert shape.holds(tight.node)
    found = sums(needs, tight.guards)
    assert all(tight.node.holds(used) for used in found)
    for part in ("cpus", "mem", "gpus"):
        assert getattr(tight.node, part) == max(getattr(used, part) for used in found)


@given(st.lists(SHARES, min_size=1, max_size=20), SHAPES, st.integers(1, 20))
def test_named_nodes_get_a_worker_each(needs: list[Share], shape: Share, named: int) -> None:
    assume(named <= len(needs))
    packing = tighten(needs, shape, named)
    assert packing.nodes == max(named, pack(needs, shape)[-1] + 1)
    assert sorted(set(packing.guards)) == list(range(packing.nodes))
    assert all(shape.holds(used) for used in sums(needs, packing.guards))


def nodes(count: int, cpus: int = 64, gib: int = 256, gpus: int = 8) -> list[Node]:
    return [Node(f"n{gpus}-{i}", "", Share(cpus, gib * 1024, gpus)) for i in range(count)]


def spec(cpu: int = 1, mem: int = 1, gpu: int = 0) -> SchedulingSpec:
    return SchedulingSpec(cpu=cpu, mem=mem, gpu=gpu)


def test_nine_workers_on_two_nodes_of_eight_are_five_and_four() -> None:
    packing = place("actor", [spec(gpu=1)] * 9, nodes(2))
    assert packing == Packing((0,) * 5 + (1,) * 4, Share(5, 5 * 1024, 5))


def test_every_spec_counts() -> None:
    packing = place("actor", [spec(gpu=8), spec(gpu=1), spec(cpu=60, gpu=1)], nodes(2))
    assert packing == Packing((0, 1, 1), Share(61, 2 * 1024, 8))


def test_a_worker_without_cores_needs_one_all_the_same() -> None:
    assert need(spec(cpu=0, mem=0)) == Share(1, 0, 0)


def test_memory_that_slurm_does_not_count_is_not_asked_for() -> None:
    unknown = [Node("n1", "", Share(8, 0, 0))]
    assert place("actor", [spec(cpu=2, mem=500)] * 4, unknown) == Packing((0,) * 4, Share(8, 0, 0))


def test_smaller_nodes_serve_where_there_are_not_enough_large_ones() -> None:
    mixed = [*nodes(1, gpus=8), *nodes(4, gpus=4)]
    assert place("actor", [spec(gpu=4)] * 2, mixed).nodes == 1
    assert place("actor", [spec(gpu=4)] * 4, mixed).node.gpus == 4
    assert place("actor", [spec(gpu=4)] * 5, mixed).nodes == 5


def test_a_worker_that_fits_no_node_is_refused_with_what_it_needs_and_what_there_is() -> None:
    with pytest.raises(
        GPUAllocationError, match=r"9 device\(s\) wanted, 8 free; actor/1 needs more; Slurm lists 2 node"
    ):
        place("actor", [spec(), spec(gpu=9)], nodes(2))
    with pytest.raises(
        WorkerConfigurationError, match=r"actor/0 needs a node with 65 CPU\(s\), 1 GiB, 0 device\(s\); "
    ):
        place("actor", [spec(cpu=65)], nodes(2))
    with pytest.raises(WorkerConfigurationError, match=r"2 node\(s\) with 64 CPU\(s\), 256 GiB, 8 device\(s\) each"):
        place("actor", [spec(mem=257)], nodes(2))
    with pytest.raises(WorkerConfigurationError, match="Slurm lists no node here"):
        place("actor", [spec()], [])


def test_more_than_all_nodes_have_is_refused() -> None:
    with pytest.raises(GPUAllocationError, match=r"17 device\(s\) wanted, 16 free; ask for fewer"):
        place("actor", [spec(gpu=1)] * 17, nodes(2))
    with pytest.raises(WorkerConfigurationError, match=r"role 'actor' with 3 worker\(s\) does not fit the cluster"):
        place("actor", [spec(cpu=60)] * 3, nodes(2))


def test_more_named_nodes_than_workers_are_refused() -> None:
    with pytest.raises(WorkerConfigurationError, match=r"has 2 worker\(s\), its nodelist names 3 nodes; name at most"):
        place("actor", [spec()] * 2, nodes(3), named=3)
