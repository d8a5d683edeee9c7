"""What every scheduler promises. The same tests run against each of them."""

from __future__ import annotations

import io
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from rolecall import Job, Scheduler, SchedulingSpec, SchedulingStrategy
from rolecall.errors import (
    RolecallError,
    RPCConnectionError,
    WorkerConfigurationError,
    WorkerCreationError,
    WorkerNotFoundError,
)
from rolecall.protocol.environment import PROCESS_GROUP
from tests.support import live, sample_engines
from tests.support.backend import DEVICES, Backend

Echo = sample_engines.Echo
ENGINES = sample_engines.__name__


@pytest.fixture
def s(shared: Scheduler) -> Scheduler:
    return shared


# Beginning


class InterruptedWhileWriting(io.StringIO):
    def write(self, text: str) -> int:
        raise KeyboardInterrupt


def test_ctrl_c_as_a_run_says_where_it_listens_leaves_nothing(
    make: Callable[..., Scheduler], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A KeyboardInterrupt inside the constructor leaves no process behind."""
    before = {process.pid for process in psutil.Process().children(recursive=True)}
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", InterruptedWhileWriting())
        with pytest.raises(KeyboardInterrupt):
            make(quiet=False)
    assert {process.pid for process in psutil.Process().children(recursive=True)} <= before


# Jobs


def test_worker_ids_are_role_and_index_in_order(s: Scheduler) -> None:
    """Ids are `role/index` in order, and no port is given out twice."""
    assert s.create_workers(Job("actor", 3)) == ["actor/0", "actor/1", "actor/2"]
    workers = s.get_workers("actor")
    assert [w.id for w in workers] == ["actor/0", "actor/1", "actor/2"]
    assert all(len(w.worker_ports) == 2 for w in workers)
    ports = [p for w in workers for p in w.worker_ports]
    assert len(set(ports)) == len(ports)


def test_a_job_without_replicas_is_refused() -> None:
    """A job has at least one replica."""
    with pytest.raises(WorkerConfigurationError, match="use 1 or more"):
        Job("actor", 0)


def test_a_process_group_without_a_port_or_processes_is_refused(s: Scheduler) -> None:
    """The second port of worker 0 is the group's; workers of a target have variables already."""
    with pytest.raises(WorkerConfigurationError, match="use port_count=2 or more"):
        s.start("actor", process_group=True, port_count=1)
    s.start("actor")
    with pytest.raises(WorkerConfigurationError, match="process_group"):
        s.start("ref", target="actor", fork=False, process_group=True)


def test_readiness_without_a_program_is_refused(s: Scheduler) -> None:
    """Of a role and of a fork: workers that host engines say by themselves when they are ready."""
    with pytest.raises(WorkerConfigurationError, match="ready= without cmd="):
        s.start("actor", ready="/health")
    actors = s.start("actor")
    with pytest.raises(WorkerConfigurationError, match=r"ready= without .*command="):
        actors.fork("ref", ready="/health")


def test_a_job_with_the_wrong_number_of_specs_is_refused() -> None:
    """A job has one spec for all replicas or one for each of them."""
    with pytest.raises(WorkerConfigurationError, match="one for each of the 3"):
        Job("actor", 3, [SchedulingSpec(), SchedulingSpec()])


def test_an_unknown_strategy_is_refused() -> None:
    """The error lists the strategies that exist."""
    with pytest.raises(WorkerConfigurationError, match="separation, colocation"):
        SchedulingStrategy("beside")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["", "a/b", "../x", "a b", "-x", "a" * 64, "a\0b", "ä"])
def test_bad_role_names_are_refused(name: str) -> None:
    """A role's name is short, ASCII, and cannot leave a folder or be taken for an option."""
    with pytest.raises(WorkerConfigurationError, match="bad role name"):
        Job(name)


def test_a_role_that_exists_is_refused_and_stays(s: Scheduler) -> None:
    """Creating a role of a name that is taken fails and leaves the existing role alone."""
    s.create_workers(Job("actor"))
    with pytest.raises(WorkerCreationError, match="there is a role of that name"):
        s.create_workers(Job("actor"))
    assert len(s.get_workers("actor")) == 1


def test_an_unknown_role_is_named_with_those_that_run(s: Scheduler) -> None:
    """The error for an unknown role lists the running ones, the error for an unknown worker names it."""
    s.create_workers(Job("actor"))
    with pytest.raises(WorkerNotFoundError, match=r"no role 'actr' \(running: actor\)"):
        s.get_workers("actr")
    with pytest.raises(WorkerNotFoundError, match="no worker 'actor/7'"):
        s.call_engine("actor/7", "echo")


def test_more_devices_than_free_are_refused_and_may_be_had_when_they_are_given_back(
    s: Scheduler, facts: Backend
) -> None:
    """Devices are exclusive to a role until it is deleted."""
    s.create_workers(Job("actor", DEVICES // 2, [SchedulingSpec(gpu=2)]))
    error, seen = facts.full
    with pytest.raises(error, match=seen):
        s.create_workers(Job("rollout", 1, [SchedulingSpec(gpu=1)]))
    s.delete_workers("actor")
    s.create_workers(Job("rollout", DEVICES // 4, [SchedulingSpec(gpu=4)]))


def test_a_plan_starts_nothing_and_takes_nothing(s: Scheduler) -> None:
    """`plan` shows the slots of a job, is repeatable, and reserves nothing."""
    job = Job("actor", DEVICES // 2, [SchedulingSpec(gpu=2)])
    plan = s.plan(job)
    assert [(slot.worker_id, slot.gpu) for slot in plan.slots] == [(f"actor/{i}", 2) for i in range(DEVICES // 2)]
    assert s.plan(job) == plan
    with pytest.raises(WorkerNotFoundError):
        s.get_workers("actor")


# Forks


def test_a_fork_lives_in_the_slot_of_its_target(s: Scheduler) -> None:
    """A fork has an engine of its own beside its target, and a name that must be free."""
    actors = s.start("actor", replicas=2, gpu=2, env_vars={"COLOUR": "red"})
    actors.create_engine(Echo)
    refs = actors.fork("ref")
    refs.create_engine(Echo, "ref")
    assert [w.id for w in refs.workers] == ["ref/0", "ref/1"]
    assert refs.call("greet") == ["ref", "ref"]
    with pytest.raises(WorkerNotFoundError, match=r"no role 'nobody' \(running: actor, ref\)"):
        s.fork_workers("x", "nobody")
    with pytest.raises(WorkerCreationError, match="there is a role of that name"):
        s.fork_workers("ref", "actor")


def test_deleting_a_fork_leaves_its_target_and_deleting_a_target_takes_its_forks(s: Scheduler) -> None:
    """Deletion goes from a target to its forks, never the other way."""
    actors = s.start("actor")
    actors.create_engine(Echo)
    actors.fork("ref")
    s.delete_workers("ref")
    assert actors.call("greet") == ["hello"]
    actors.fork("ref").fork("refref")
    s.delete_workers("actor")
    for role in ("actor", "ref", "refref"):
        with pytest.raises(WorkerNotFoundError):
            s.get_workers(role)


def test_colocation_in_a_job_is_a_fork(s: Scheduler) -> None:
    """A job with the strategy `colocation` becomes a fork of its target."""
    s.start("actor", replicas=2)
    assert s.create_workers(Job("ref", 2, scheduling_strategy=SchedulingStrategy("colocation", "actor"))) == [
        "ref/0",
        "ref/1",
    ]


def test_a_colocated_job_keeps_the_environment_that_its_specs_name(s: Scheduler, facts: Backend) -> None:
    """Variables of a fork's own spec override those of its target."""
    s.start("actor", replicas=2, env_vars={"A": "target's", "B": "target's"})
    tasks = [SchedulingSpec(env_vars={"B": f"own {i}"}, port_count=3) for i in range(2)]
    role = s.start("ref", replicas=2, target="actor", tasks=tasks)
    assert all(len(worker.worker_ports) == 3 for worker in role.workers)
    if facts.own_processes:  # else there is one environment for all of them
        role.create_engine(Echo)
        seen = role.call("environment", "A", "B")
        assert seen == [{"A": "target's", "B": "own 0"}, {"A": "target's", "B": "own 1"}]


def test_only_roles_that_ask_find_a_process_group(s: Scheduler, facts: Backend) -> None:
    """Its forks do not; one that asks has a group of its own."""
    actors = s.start("actor", replicas=2, process_group=True)
    if facts.own_processes:
        roles = [actors, actors.fork("ref"), actors.fork("critic", process_group=True)]
        for role in roles:
            role.create_engine(Echo)
        groups = [role.call("environment", *PROCESS_GROUP) for role in roles]
        assert groups[1] == [dict.fromkeys(PROCESS_GROUP)] * 2
        for role, group in ((roles[0], groups[0]), (roles[2], groups[2])):
            first = role.workers[0]
            for rank in range(2):
                there = (str(rank), "2", "0", "1", first.ip, first.worker_ports[1])
                assert group[rank] == dict(zip(PROCESS_GROUP, there, strict=True))


def test_a_call_to_a_role_that_is_deleted_meanwhile_says_so(s: Scheduler) -> None:
    """A pending call of a deleted role fails and names the deletion as the cause."""
    role = s.start("actor")
    role.create_engine(Echo)
    pending = role[0].submit("later", 1, 60.0)
    role.delete()
    with pytest.raises(RPCConnectionError, match="connection to actor/0 lost: role 'actor' was deleted"):
        pending.result()


def test_colocation_without_a_fork_uses_the_targets_own_workers(s: Scheduler) -> None:
    """Two roles share the same worker processes, and deleting the second leaves the first."""
    actors = s.start("actor", replicas=2)
    actors.create_engine(Echo, "actor")
    critics = s.start("critic", replicas=2, target="actor", fork=False)
    critics.create_engine(Echo, "critic")
    assert critics.call("greet") == ["critic", "critic"]
    assert actors.call("greet") == ["actor", "actor"]
    assert critics.call("pid") == actors.call("pid")
    s.delete_workers("critic")
    assert actors.call("greet") == ["actor", "actor"]


def test_colocation_with_other_replicas_or_without_a_target_is_refused(s: Scheduler) -> None:
    """A colocated role has as many replicas as its target, which must exist."""
    s.start("actor", replicas=2)
    with pytest.raises(WorkerConfigurationError, match="as many as its target"):
        s.start("ref", replicas=3, target="actor")
    with pytest.raises(WorkerNotFoundError):
        s.start("ref", replicas=2, target="nobody")
    with pytest.raises(WorkerConfigurationError, match="fork=False without target="):
        s.start("ref", replicas=2, fork=False)
    with pytest.raises(WorkerConfigurationError, match="without a target"):
        SchedulingStrategy("colocation")


# Ends


def test_roles_are_deleted_one_or_all_and_may_be_made_again(s: Scheduler) -> None:
    """Roles are deleted by name or all at once, and a deleted name is free again."""
    s.start("a")
    s.start("b")
    s.delete_workers("a")
    s.start("a").create_engine(Echo)
    s.delete_workers(reverse_order=True)
    with pytest.raises(WorkerNotFoundError):
        s.delete_workers("a")


def test_closing_twice_is_fine_and_ends_everything(make: Callable[..., Scheduler]) -> None:
    """The second time does nothing; a role of a scheduler that is closed cannot be called."""
    scheduler = make()
    role = scheduler.start("a")
    role.create_engine(Echo)
    scheduler.close()
    scheduler.close()
    with pytest.raises(RolecallError):
        role.call("greet")


def test_destroy_is_called_on_every_engine_before_its_worker_ends(s: Scheduler, tmp_path: Path) -> None:
    """By the time a deletion returns, each engine has done what it does last."""
    role = s.start("actor", replicas=2)
    names = tmp_path / "destroyed"
    for name in ("first", "second"):
        role.with_options(engine=name).create_engine(sample_engines.Last, str(names), name)
    s.delete_workers("actor")
    assert sorted(names.read_text().split()) == ["first", "first", "second", "second"]


def test_worker_0_ends_last_in_reverse_order(s: Scheduler, facts: Backend, tmp_path: Path) -> None:
    """From the last to the first, in the role and in its forks, which end before it."""
    ends = tmp_path / "ends"
    trap = f"trap 'echo $ROLECALL_ROLE/$ROLECALL_INDEX >> {ends}; exit' TERM; echo up; while :; do sleep 0.05; done"
    command = ["sh", "-c", trap]
    actors = s.start("actor", replicas=3)
    if facts.own_processes:
        actors.fork("first", command, ready={"log": "up"})
        actors.fork("second", command, ready={"log": "up"})
    s.delete_workers(reverse_order=True)
    if facts.own_processes:
        assert ends.read_text().split() == [f"{role}/{i}" for role in ("second", "first") for i in (2, 1, 0)]


def test_a_run_says_in_one_line_where_it_listens_and_what_protects_it(
    make: Callable[..., Scheduler], capsys: pytest.CaptureFixture[str]
) -> None:
    """A scheduler prints its address, its protection and its folder in one line, and nothing if `quiet`."""
    scheduler = make()
    (line,) = capsys.readouterr().err.splitlines()
    assert "listens on unix:" in line and "auth on, TLS off" in line and scheduler.run_dir in line
    make(trial="silent", quiet=True)
    assert capsys.readouterr().err == ""


def test_the_token_is_in_no_file_that_others_can_read(s: Scheduler) -> None:
    """No file of the run directory holds the run's token."""
    s.start("actor")
    token = live.token(s).encode()
    for root, _, files in os.walk(s.run_dir):
        for name in files:
            assert token not in (Path(root) / name).read_bytes()


def test_a_run_can_be_inspected(s: Scheduler) -> None:
    """The view of a run names every worker with its process, its devices and since when it is there."""
    began = time.time()
    actors = s.start("actor", replicas=2, gpu=1)
    actors.create_engine(Echo)
    refs = actors.fork("ref")
    seen = actors.inspect()
    assert [worker.id for worker in seen] == ["actor/0", "actor/1"]
    assert [worker.pid for worker in seen] == actors.call("pid")
    assert all(worker.state == "running" and began - 1 <= worker.since <= time.time() for worker in seen)
    assert all(len(worker.devices) == 1 for worker in seen)
    assert [worker.target for worker in refs.inspect()] == ["actor/0", "actor/1"]
    run = s.inspect()
    assert {worker.id for worker in run.workers()} == {"actor/0", "actor/1", "ref/0", "ref/1"}
    assert {worker.guard for worker in run.workers()} == {guard.id for guard in run.guards if guard.pid}
    with pytest.raises(WorkerNotFoundError):
        run.worker("actor/7")
