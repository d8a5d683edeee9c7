"""What there is on a Ray cluster, as its head tells: `python ray_census.py ADDRESS`, then a line of JSON for each line.

A process of its own, and no driver: it can be asked in the middle of a test, and a lost head ends nobody but it.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.clusters.ray_nodes import RayCluster


STORE = "object_store_memory"


class Census:
    """The asking side."""

    def __init__(self, address: str, env: Mapping[str, str]) -> None:
        command = [sys.executable, "-P", __file__, address]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)

    def take(self) -> dict[str, list[dict[str, Any]]]:
        """Living actors, placement groups and jobs, all nodes, and the bytes in each object store that is not empty."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        found: dict[str, list[dict[str, Any]]] = json.loads(self._process.stdout.readline())
        return found

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


@contextlib.contextmanager
def census_of(cluster: RayCluster) -> Iterator[Census]:
    """A census of a cluster, for a block of code."""
    with contextlib.closing(Census(cluster.exports["RAY_ADDRESS"], cluster.environment())) as census:
        yield census


def _answer(address: str) -> None:
    from ray._private.internal_api import get_state_from_address

    state = get_state_from_address(address)
    for _ in sys.stdin:
        actors = [a | _shown(state, a) for a in state.actor_table(None).values() if a["State"] != "DEAD"]
        groups = [g for g in state.placement_group_table().values() if g["state"] != "REMOVED"]
        jobs = [j for j in state.job_table() if not j["IsDead"]]
        nodes, free = state.node_table(), state.available_resources_per_node()
        used = {n["NodeID"]: n["Resources"][STORE] - free[n["NodeID"]][STORE] for n in nodes if n["NodeID"] in free}
        objects = [{"NodeID": node, "bytes": count} for node, count in used.items() if count]
        found = {"actors": actors, "groups": groups, "jobs": jobs, "nodes": nodes, "objects": objects}
        print(json.dumps(found, default=str), flush=True)


def _shown(state: Any, actor: dict[str, Any]) -> dict[str, Any]:
    """What `ray list actors --detail` shows of an actor besides."""
    from ray import ActorID
    from ray.core.generated.gcs_pb2 import ActorTableData

    found = state._connect_and_get_accessor().get_actor_info(ActorID(bytes.fromhex(actor["ActorID"])))
    return {"ReprName": ActorTableData.FromString(found).repr_name}


if __name__ == "__main__":
    _answer(sys.argv[1])
