"""What Ray says, in words of ours, as values."""

from __future__ import annotations

from typing import Any

import pytest

from rolecall.placement.ray.messages import error_text, lost, why

NODES = [
    {"NodeID": "aaaaaaaa", "NodeName": "10.0.0.1", "Resources": {"CPU": 8.0, "GPU": 4.0, "memory": 64.0 * 2**30}},
    {"NodeID": "bbbbbbbb", "NodeName": "10.0.0.2", "Resources": {"CPU": 16.0}},
]
FREE = {"aaaaaaaa": {"CPU": 3.0, "GPU": 1.0, "memory": 0.5 * 2**30}}


def table(*bundles: dict[str, float], state: str = "QUEUED") -> dict[str, Any]:
    return {"name": "rolecall/1/actor", "bundles": dict(enumerate(bundles)), "stats": {"scheduling_state": state}}


def test_a_group_that_waits_is_told_with_what_it_asks_for_and_what_is_free() -> None:
    """Only what it asks for is shown, and a node that has nothing free shows that."""
    assert why([table({"GPU": 2.0, "CPU": 4.0}, {"CPU": 1.0})], 1, NODES, FREE) == (
        "1 of 1 placement group(s) not placed: rolecall/1/actor asks for {4 CPU, 2 GPU} + {1 CPU}; "
        "free: 10.0.0.1 (aaaaaa) 3 of 8 CPU, 1 of 4 GPU; 10.0.0.2 (bbbbbb) 0 of 16 CPU, 0 of 0 GPU"
    )


def test_memory_is_told_in_gib() -> None:
    """Bytes asked for and free are shown in GiB."""
    said = why([table({"memory": 2.0 * 2**30})], 3, NODES[:1], FREE)
    assert said.endswith("asks for {2 GiB memory}; free: 10.0.0.1 (aaaaaa) 0.5 GiB of 64 GiB memory")


def test_what_can_never_be_placed_and_a_cluster_without_nodes() -> None:
    """Infeasible groups and a cluster without nodes are both said."""
    said = why([table({"CPU": 1.0}, state="INFEASIBLE")], 2, [], {})
    assert said.startswith("1 of 2 placement group(s) not placed, and no nodes are large enough: ")
    assert said.endswith("free: no node")


def test_a_node_that_died_and_one_that_ray_has_forgotten() -> None:
    """A lost node is described by Ray's reason, or by its absence."""
    nodes = [{"NodeID": "aaaaaaaa", "NodeManagerAddress": "10.0.0.1", "DeathReasonMessage": "health check failed"}]
    assert lost("aaaaaaaa", nodes) == "its Ray node 10.0.0.1 died: health check failed"
    nodes[0]["DeathReasonMessage"] = ""
    assert lost("aaaaaaaa", nodes) == "its Ray node 10.0.0.1 died: no reason known"
    assert lost("bbbbbbbb", nodes) == "its Ray node (bbbbbb) is gone from Ray's list"


DIED = """The actor died unexpectedly before finishing this task.
\tclass_name: Guard
\tactor_id: 1ebe4ff05c04093d40f2954601000000
The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Some common causes include: (1)"""


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (DIED, "The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR"),
        ("no such thing", "no such thing"),
        ("", "ValueError"),
    ],
)
def test_an_error_of_rays_is_its_last_sentence(error: str, words: str) -> None:
    """Of a long message of Ray's the telling part is kept."""
    assert error_text(ValueError(error)) == words
