"""Roles that are started, forked, deleted and closed by several threads, or interrupted, leave nothing behind."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rolecall import Job, LocalScheduler, SchedulingSpec
from rolecall.errors import (
    SchedulerError,
    WorkerConfigurationError,
    WorkerCreationError,
    WorkerFailedError,
)
from rolecall.placement.local import LocalPlacement
from rolecall.protocol.guard import ALLOC_PORTS, AllocPorts
from rolecall.scheduler.guards import GuardProxy, kill
from tests.support import sample_engines
from tests.support.live import ports_leased
from tests.support.waiting import wait_for
from tests.support.worker_processes import of_worker, processes

pytestmark = pytest.mark.slow("threads that race for seconds")

Echo = sample_engines.Echo
NEVER_READY = [sys.executable, "-c", "import time; print('sleeping', flush=True); time.sleep(3600)"]


@pytest.fixture
def s(tmp_path: Path) -> Iterator[LocalScheduler]:
    options: dict[str, Any] = {"preload": [], "devices": ["0", "1"]}
    with LocalScheduler(experiment="races", trial="t", fileroot=tmp_path, **options) as scheduler:
        yield scheduler


class Side(threading.Thread):
    """Runs `work` beside the test and keeps its result or error."""

    def __init__(self, work: Callable[[], Any]) -> None:
        super().__init__(daemon=True)
        self._work, self.error, self.value = work, None, None
        self.start()

    error: BaseException | None
    value: Any

    def run(self) -> None:
        try:
            self.value = self._work()
        except BaseException as e:
            self.error = e

    def end(self, within: float = 30.0) -> Side:
        self.join(within)
        assert not self.is_alive(), f"still at work after {within} s"
        return self


def log(s: LocalScheduler, worker_id: str) -> str:
    path = Path(s.run_dir) / "logs" / f"{worker_id.replace('/', '-')}.log"
    return path.read_text() if path.exists() else ""


def guard_of(s: LocalScheduler) -> GuardProxy:
    assert isinstance(s.placement, LocalPlacement)
    assert isinstance(s.placement.guard, GuardProxy)
    return s.placement.guard


def starting(s: LocalScheduler, start: Callable[[], Any], role: str) -> Side:
    """A start that is under way: its program runs and is not ready."""
    side = Side(start)
    wait_for(lambda: "sleeping" in log(s, f"{role}/0"), 20, "starting worker")
    return side


def test_a_worker_that_dies_while_the_others_start_fails_the_start(s: LocalScheduler) -> None:
    """It was ready, so its start did not fail; it died before there was a role whose member could be told."""
    early = [sys.executable, "-uc", "print('ready'); print('no more work'); raise SystemExit(3)"]
    wait = "import pathlib, sys, time\nwhile 'no more' not in pathlib.Path(sys.argv[1]).read_text(): time.sleep(0.01)\n"
    late = [sys.executable, "-uc", wait + "time.sleep(1)\nprint('up')\ntime.sleep(3600)", f"{s.run_dir}/logs/x-0.log"]
    tasks = [SchedulingSpec(cmd=early, ready={"log": "ready"}), SchedulingSpec(cmd=late, ready={"log": "up"})]
    with pytest.raises(WorkerCreationError, match=r"exit code 3[\s\S]*no more work") as caught:
        s.start("x", replicas=2, tasks=tasks)
    assert caught.value.failed == [0]
    assert not of_worker(s.run_id, "x/1")
    assert ports_leased(s) == 0
    s.start("x")


def test_ports_leased_for_a_start_that_never_began_are_given_back(s: LocalScheduler) -> None:
    """Ports are leased before the guard is asked for the workers; what comes in between may end the start."""
    slots, guard = s.plan(Job("x", 2)).slots, guard_of(s)
    for slot in slots:
        guard.ask(ALLOC_PORTS, AllocPorts(owner=slot.worker_id, count=3)).result()
    assert ports_leased(s) == 6
    kill({slot.worker_id: guard for slot in slots}, 0.0, 30.0)
    assert ports_leased(s) == 0


def test_two_roles_started_at_once_get_different_devices(tmp_path: Path) -> None:
    """Concurrent starts never share a device."""
    options: dict[str, Any] = {"preload": [], "devices": ["0", "1"]}
    with LocalScheduler(experiment="races", trial="devices", fileroot=tmp_path, **options) as s:
        sides = [Side(lambda name=name: s.start(name, gpu=1)) for name in ("a", "b")]  # type: ignore[misc]
        for side in sides:
            assert side.end().error is None
        seen = []
        for side in sides:
            side.value.create_engine(Echo)
            seen += [env["CUDA_VISIBLE_DEVICES"] for env in side.value.call("environment", "CUDA_VISIBLE_DEVICES")]
        assert sorted(seen) == ["0", "1"]


def test_threads_that_delete_and_start_one_role_never_end_each_others_workers(s: LocalScheduler) -> None:
    """A deletion ends the role that it meant and none that came after it."""
    role = s.start("a", gpu=2)
    role.create_engine(Echo)
    sides = [Side(lambda: s.delete_workers("a")) for _ in range(4)]
    while True:
        deleting = any(side.is_alive() for side in sides)  # before: the last one may end while the start is refused
        try:
            again = s.start("a", gpu=2)
            break
        except SchedulerError:
            assert deleting, "the name never became free"
    for side in sides:
        side.end()
    if [r.name for r in s.inspect().roles] == ["a"]:  # a late deleter may have meant the new one
        again.create_engine(Echo)
        assert again.call("greet") == ["hello"]
    else:
        assert not of_worker(s.run_id, "a/0")
        s.start("b", gpu=2)


def test_a_target_that_is_deleted_takes_the_fork_with_it_that_is_being_started(s: LocalScheduler) -> None:
    """A fork under way ends with its target."""
    actors = s.start("actor", gpu=1)
    up = Path(s.run_dir) / "up"
    program = "import pathlib, sys, time\nprint('sleeping', flush=True)\n"
    program += "while not pathlib.Path(sys.argv[1]).exists(): time.sleep(0.01)\n"
    program += "print('up', flush=True)\ntime.sleep(3600)"
    argv = [sys.executable, "-c", program, str(up)]
    fork = starting(s, lambda: actors.fork("ref", command=argv, ready={"log": "up"}), "ref")
    delete = Side(lambda: s.delete_workers("actor"))
    wait_for(lambda: s.inspect().worker("actor/0").state == "ending", 5, "deletion")
    up.touch()
    fork.end()
    delete.end()
    assert [r.name for r in s.inspect().roles] == []
    assert not of_worker(s.run_id, "ref/0")


def test_closing_ends_a_start_under_way_at_once(s: LocalScheduler) -> None:
    """Closing rolls back a start that would never finish."""
    side = starting(s, lambda: s.start("slow", cmd=NEVER_READY, ready={"log": "never"}), "slow")
    begun = time.monotonic()
    s.close()
    assert time.monotonic() - begun < 10
    error = side.end().error
    assert isinstance(error, WorkerCreationError), repr(error)
    assert not processes(s.run_id)


def test_ctrl_c_while_a_role_starts_takes_it_back(s: LocalScheduler) -> None:
    """An interrupted start is rolled back: no process, no lease, and the devices are free."""

    def interrupt() -> None:
        wait_for(lambda: "sleeping" in log(s, "slow/0"), 20, "starting worker")
        signal.pthread_kill(main, signal.SIGINT)

    main = threading.get_ident()
    side = Side(interrupt)
    with pytest.raises(KeyboardInterrupt):
        s.start("slow", gpu=2, cmd=NEVER_READY, ready={"log": "never"})
    side.end()
    assert not of_worker(s.run_id, "slow/0")
    assert ports_leased(s) == 0
    s.start("slow", gpu=2)


def test_ctrl_c_while_a_role_is_deleted_lets_it_be_deleted_again(s: LocalScheduler) -> None:
    """An interrupted deletion can be repeated and then frees everything."""
    stubborn = "import signal, time; signal.signal(signal.SIGTERM, lambda *a: print('asked', flush=True))\n"
    stubborn += "print('up', flush=True)\nwhile True: time.sleep(3600)"
    s.start("stubborn", gpu=2, cmd=[sys.executable, "-c", stubborn], ready={"log": "up"})

    def interrupt() -> None:
        wait_for(lambda: "asked" in log(s, "stubborn/0"), 20, "SIGTERM")
        signal.pthread_kill(main, signal.SIGINT)

    main = threading.get_ident()
    side = Side(interrupt)
    with pytest.raises(KeyboardInterrupt):
        s.delete_workers("stubborn")
    side.end()
    s.delete_workers("stubborn")
    assert not of_worker(s.run_id, "stubborn/0")
    s.start("next", gpu=2)


def test_all_callers_learn_of_a_lost_guard_also_when_nothing_can_be_written(s: LocalScheduler) -> None:
    """A full disk or a run directory that is gone must not keep anybody waiting."""
    role = s.start("actor", replicas=3)
    role.create_engine(Echo)
    pending = role.submit("sleep", 3600.0)
    events: list[str] = []
    s.subscribe(lambda topic, facts: events.append(topic))
    moved = Path(s.run_dir).with_name("moved")
    Path(s.run_dir).rename(moved)
    Path(s.run_dir).touch()  # no folder can be made here either
    signal_guard(s)
    for call in pending:
        with pytest.raises(WorkerFailedError, match="ended with its guard"):
            call.result()
    wait_for(lambda: events == ["guard_lost"], 5, "news of the guard")
    for start in (lambda: s.start("next"), role[0].restart):
        with pytest.raises(WorkerCreationError, match=r"was lost and no other could be started: .*Not a directory"):
            start()
    Path(s.run_dir).unlink()
    moved.rename(s.run_dir)
    role[0].restart()  # what failed once is tried again
    assert role[0].call("greet") == "hello"
    s.start("next")


def signal_guard(s: LocalScheduler) -> None:
    os.kill(s.inspect().guards[0].pid, signal.SIGKILL)


def test_after_the_guard_was_lost_a_role_has_another_and_closing_is_quick(s: LocalScheduler) -> None:
    """A new role has a guard; the old one's workers are dead, and so are the slots of their forks, until a restart."""
    role = s.start("actor")
    role.create_engine(Echo)
    events: list[str] = []
    s.subscribe(lambda topic, facts: events.append(topic))
    signal_guard(s)
    wait_for(lambda: "guard_lost" in events, 5, "loss of the guard")
    s.start("next")
    begun = time.monotonic()
    s.close()
    assert time.monotonic() - begun < 5


def test_a_closed_scheduler_says_so(s: LocalScheduler) -> None:
    """Starting, calling and configuring after `close` fail with that reason."""
    role = s.start("actor")
    s.close()
    for use in (lambda: s.start("next"), lambda: role.call("greet"), lambda: role.set_env({"A": "1"})):
        with pytest.raises(WorkerConfigurationError, match="has ended"):
            use()
