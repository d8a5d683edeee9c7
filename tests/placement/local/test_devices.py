"""On one machine devices have names, are planned by name and given to one worker each."""

from __future__ import annotations

from pathlib import Path

from rolecall import Job, LocalScheduler, SchedulingSpec
from tests.support import sample_engines


def test_devices_are_planned_by_name_and_each_is_given_to_one_worker(tmp_path: Path) -> None:
    with LocalScheduler(experiment="devices", trial="t", fileroot=tmp_path, preload=[], devices=range(6)) as s:
        plan = s.plan(Job("actor", 2, [SchedulingSpec(gpu=2)]))
        assert [slot.devices for slot in plan.slots] == [("0", "1"), ("2", "3")]
        roles = [s.start("actor", replicas=2, gpu=2), s.start("rollout", gpu=2)]
        for role in roles:
            role.create_engine(sample_engines.Echo)
        seen = [
            env["CUDA_VISIBLE_DEVICES"] for role in roles for env in role.call("environment", "CUDA_VISIBLE_DEVICES")
        ]
        assert seen == ["0,1", "2,3", "4,5"]
