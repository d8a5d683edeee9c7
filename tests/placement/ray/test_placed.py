"""Roles on a real Ray cluster: where they are placed, what they see, how they are forked."""

from __future__ import annotations

import os
import signal
import sys
import time
import urllib.request
from collections.abc import Callable

import pytest

from rolecall import RayScheduler, SchedulingSpec
from rolecall.errors import WorkerConfigurationError, WorkerFailedError
from tests.clusters.ray_census import Census
from tests.placement.ray.ray_engines import Inside, Spanning

KNOWN_WITHIN_S = 15.0
VISIBLE = "CUDA_VISIBLE_DEVICES"
SHOW = [
    sys.executable,
    "-c",
    "import os, time; print(os.environ['CUDA_VISIBLE_DEVICES'], flush=True); time.sleep(3600)",
]
SERVER = [sys.executable, "-m", "http.server", "{port}", "--bind", "{host}"]


def bundles(census: Census) -> list[list[dict[str, float]]]:
    return sorted([list(group["bundles"].values()) for group in census.take()["groups"]], key=len)


def test_a_role_is_started_called_and_ended(s: RayScheduler) -> None:
    """A role runs in processes of its own, and its names are free after the deletion."""
    role = s.start("actor", replicas=2, gpu=1)
    role.create_engine(Inside)
    assert len(set(role.call("pid"))) == 2
    s.delete_workers("actor")
    role = s.start("actor", replicas=2, gpu=1)  # Ray's names are free again
    role.create_engine(Inside)
    assert len(set(role.call("pid"))) == 2


def test_shared_is_one_group_with_a_bundle_for_each_worker(s: RayScheduler, census: Census) -> None:
    """The strategy `shared` asks Ray for one placement group."""
    s.start("actor", replicas=2, gpu=2, cpu=3)
    (group,) = census.take()["groups"]
    assert group["name"] == f"rolecall/{s.run_id}/actor"
    assert list(group["bundles"].values()) == [{"CPU": 3, "GPU": 2}] * 2


def test_separate_is_a_group_for_each_worker(s: RayScheduler, census: Census) -> None:
    """The strategy `separate` asks Ray for one placement group per worker."""
    s.start("rollout", replicas=2, gpu=1, cpu=3, ray_placement_strategy="separate")
    groups = census.take()["groups"]
    assert sorted(group["name"] for group in groups) == [f"rolecall/{s.run_id}/rollout/{i}" for i in (0, 1)]
    assert [list(group["bundles"].values()) for group in groups] == [[{"CPU": 3, "GPU": 1}]] * 2


def test_an_engine_that_spans_nodes_uses_all_of_its_deferred_group(s: RayScheduler) -> None:
    """The guard takes no device of it, and the engine's own actors get them on both nodes."""
    role = s.start("rollout", gpu=8, cpu=4, ray_placement_strategy="deferred")
    role.create_engine(Spanning)
    inside = role.with_options(engine="inside")
    inside.create_engine(Inside)
    assert inside.call("environment", VISIBLE) == [{VISIBLE: ""}]
    assert role.call("group") == [[{"CPU": 2, "GPU": 4}] * 2]
    assert role.call("devices_of_actors") == [["0,1,2,3"] * 2]


def test_mixed_strategies_are_refused(s: RayScheduler) -> None:
    """Workers of one role have the same placement strategy."""
    specs = [SchedulingSpec(cpu=1), SchedulingSpec(cpu=1, ray_placement_strategy="separate")]
    with pytest.raises(WorkerConfigurationError, match="mixes placement strategies"):
        s.start("actor", replicas=2, tasks=specs)


def test_a_plan_shows_groups_and_bundles_and_asks_for_nothing(s: RayScheduler, census: Census) -> None:
    """`plan` prints the placement groups and creates none."""
    from rolecall import Job

    plan = s.plan(Job("actor", 2, [SchedulingSpec(cpu=1, gpu=2)]))
    assert f"placement group rolecall/{s.run_id}/actor (PACK)\n  bundle 0: 1 CPU, 2 GPU" in str(plan)
    assert not census.take()["groups"]


def test_actors_are_guards_named_after_their_workers(s: RayScheduler, census: Census) -> None:
    """Ray's dashboard shows each guard under the name of its worker."""
    s.start("actor", replicas=2, cpu=1, ray_placement_strategy="separate")
    actors = census.take()["actors"]
    assert sorted(actor["Name"] for actor in actors) == [f"rolecall/{s.run_id}/actor/{i}" for i in (0, 1)]
    assert {actor["ActorClassName"] for actor in actors} == {"Guard"}
    assert sorted(actor["ReprName"] for actor in actors) == ["Guard(actor/0)", "Guard(actor/1)"]


def test_workers_of_a_shared_group_share_the_guard_of_their_node(s: RayScheduler, census: Census) -> None:
    """Devices of the others are held by actors that do nothing else; without devices there is nothing to hold."""
    s.start("actor", replicas=4, cpu=1, gpu=1)
    s.start("thinker", replicas=4, cpu=1)
    actors = {actor["Name"].removeprefix(f"rolecall/{s.run_id}/"): actor for actor in census.take()["actors"]}
    kinds = [actors[f"actor/{i}"]["ActorClassName"] for i in range(4)]
    assert kinds == ["Guard", "Holder", "Holder", "Holder"]
    assert actors["actor/3"]["ReprName"] == "Holder(actor/3)"
    assert [name for name in actors if name.startswith("thinker/")] == ["thinker/0"]
    assert len({m.guard for m in s.inspect().workers()}) == 2
    assert sorted(d for m in s.inspect().workers() for d in m.devices) == ["0", "1", "2", "3"]


def test_who_loses_its_devices_ends(s: RayScheduler, census: Census) -> None:
    """Ray gives them to others when the actor that held them is killed."""
    role = s.start("actor", replicas=2, cpu=1, gpu=1)
    role.create_engine(Inside)
    (holder,) = [actor for actor in census.take()["actors"] if actor["ActorClassName"] == "Holder"]
    begun = time.monotonic()
    os.kill(holder["Pid"], signal.SIGKILL)
    with pytest.raises(WorkerFailedError, match="the actor that held the devices of actor/1 ended"):
        role[1].call("wait")
    assert time.monotonic() - begun < KNOWN_WITHIN_S


def test_workers_see_the_devices_that_ray_has_assigned(s: RayScheduler) -> None:
    """Workers that share a node see different devices, unequal specs count, and who asked for none sees none."""
    specs = [SchedulingSpec(cpu=1, gpu=1), SchedulingSpec(cpu=1, gpu=2), SchedulingSpec(cpu=1)]
    role = s.start("actor", replicas=3, tasks=specs)
    role.create_engine(Inside)
    seen = [each[VISIBLE] for each in role.call("environment", VISIBLE)]
    assert [len([d for d in (devices or "").split(",") if d]) for devices in seen] == [1, 2, 0]
    assert not set((seen[0] or "").split(",")) & set((seen[1] or "").split(","))


def test_npus_are_a_resource_and_a_variable_of_their_own(make: Callable[..., RayScheduler], census: Census) -> None:
    """NPUs are asked for as `NPU` and seen in ASCEND_RT_VISIBLE_DEVICES."""
    s = make(accelerator="npu")
    assert s.n_gpus_per_node == 4
    role = s.start("actor", gpu=2, cpu=1)
    role.create_engine(Inside)
    (seen,) = role.call("environment", "ASCEND_RT_VISIBLE_DEVICES", VISIBLE)
    assert seen == {"ASCEND_RT_VISIBLE_DEVICES": "0,1", VISIBLE: None}
    assert bundles(census) == [[{"CPU": 1, "NPU": 2}]]


def test_a_script_for_devices_runs_on_a_cluster_without_them(make: Callable[..., RayScheduler], census: Census) -> None:
    """With `accelerator="none"` no device is asked for, and workers see none."""
    role = make(accelerator="none").start("actor", gpu=2, cpu=1)
    role.create_engine(Inside)
    assert role.call("environment", VISIBLE) == [{VISIBLE: ""}]
    assert bundles(census) == [[{"CPU": 1}]]


def test_memory_is_asked_for_when_it_shall_be(make: Callable[..., RayScheduler], census: Census) -> None:
    """`reserve_memory` adds the spec's memory to the bundle."""
    make(reserve_memory=True).start("actor", cpu=1, mem=2)
    assert bundles(census) == [[{"CPU": 1, "memory": 2 << 30}]]


def test_rays_changes_to_an_actors_process_do_not_reach_workers(
    make: Callable[..., RayScheduler], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Thread counts are the slot's, nobody is nice, and the controller's own variables arrive."""
    monkeypatch.setenv("COLOUR", "blue")
    role = make().start("actor", cpu=1, env_vars={"SHAPE": "round"})
    role.create_engine(Inside)
    assert role.call("niceness") == [0]
    names = ("OMP_NUM_THREADS", "RAY_JOB_ID", "RAY_RAYLET_PID", "COLOUR", "SHAPE")
    (seen,) = role.call("environment", *names)
    assert seen == {**dict.fromkeys(names), "OMP_NUM_THREADS": "1", "COLOUR": "blue", "SHAPE": "round"}


def test_a_fork_sees_all_devices_of_its_target(s: RayScheduler) -> None:
    """With engines and with a program, and without a share of a device in Ray's books."""
    actors = s.start("actor", gpu=2, cpu=1)
    actors.create_engine(Inside)
    ref = actors.fork("ref")
    ref.create_engine(Inside)
    ((_, devices),) = actors.call("environment", VISIBLE)[0].items()
    assert devices is not None and len(devices.split(",")) == 2
    assert ref.call("environment", VISIBLE) == [{VISIBLE: devices}]
    actors.fork("program", command=SHOW, ready={"log": f"^{devices}$"})


def test_a_server_beside_every_rollout_worker_is_called_by_its_address(s: RayScheduler) -> None:
    """A forked program serves on the node of its target."""
    rollout = s.start("rollout", replicas=2, gpu=2, cpu=1, ray_placement_strategy="separate")
    rollout.fork("proxy", command=SERVER, ready="/")
    for worker in s.get_workers("proxy"):
        with urllib.request.urlopen(f"http://{worker.ip}:{worker.worker_ports[0]}/", timeout=10) as answer:
            assert answer.status == 200


def test_two_schedulers_share_a_cluster(make: Callable[..., RayScheduler]) -> None:
    """Roles of one name, in one process, on one cluster: each ends its own."""
    first, second = make(trial="one"), make(trial="two")
    roles = [s.start("actor", replicas=2, gpu=2, cpu=1) for s in (first, second)]
    for role in roles:
        role.create_engine(Inside)
    first.close()
    assert len(set(roles[1].call("pid"))) == 2
