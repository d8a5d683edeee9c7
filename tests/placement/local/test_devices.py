"""On one machine devices have names, are planned by name and given to one worker each."""

from __future__ import annotations

from pathlib import Path

import pytest

from rolecall import Job, LocalScheduler, SchedulingSpec
from rolecall.protocol.devices import ASCEND, CUDA, device_variable
from tests.support import sample_engines


def test_devices_are_planned_by_name_and_each_is_given_to_one_worker(tmp_path: Path) -> None:
    """The plan shows the names that the workers then see, and no device is given twice."""
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


def test_the_variable_is_that_of_the_hosts_kind_of_devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NPUs are given out as GPUs are, and seen in their own variable, by forks too."""
    monkeypatch.setenv(ASCEND, "4,5")
    monkeypatch.delenv(CUDA, raising=False)
    with LocalScheduler(experiment="npus", trial="t", fileroot=tmp_path, preload=[]) as s:
        roles = [s.start("actor", replicas=2, gpu=1)]
        roles.append(roles[0].fork("ref"))
        for role in roles:
            role.create_engine(sample_engines.Echo)
            seen = role.call("environment", ASCEND, CUDA)
            assert seen == [{ASCEND: "4", CUDA: None}, {ASCEND: "5", CUDA: None}]


def test_the_kind_of_devices_is_read_from_variables_and_then_from_dev(tmp_path: Path) -> None:
    """A variable that is set decides; a host without devices is taken for one with GPUs."""
    assert device_variable({}, tmp_path) == device_variable({CUDA: "", ASCEND: "1"}, tmp_path) == CUDA
    assert device_variable({ASCEND: "1"}, tmp_path) == ASCEND
    (tmp_path / "davinci0").touch()
    assert device_variable({}, tmp_path) == ASCEND
