"""{worker, guard, template, controller} x {SIGKILL, SIGTERM, SIGINT, SIGSTOP} x {idle, call, starting, forking}.

Each victim is hit by every signal in every state, and on every backend by every signal and in every state, but not by
every signal in every state on every backend. Workers and templates are watched by the guard, which is the same
everywhere, so each (signal, state) of theirs stands on one backend. A guard's and a controller's death also concerns
what has started the guard, so theirs stand on two.

Below the worker live a plain child, a child in a session of its own, and a daemon that was forked twice.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from signal import SIGCONT, SIGINT, SIGKILL, SIGSTOP, SIGTERM, Signals
from typing import Any

import psutil
import pytest

from rolecall import Role, Scheduler
from rolecall.errors import SchedulerError, WorkerCreationError, WorkerFailedError, WorkerStalledError
from rolecall.scheduler.run import private_root
from tests.support import sample_engines
from tests.support.backend import Backend
from tests.support.checkout import PYTHONPATH
from tests.support.schedulers_under_test import OF_PROCESSES, each, make_scheduler, on
from tests.support.waiting import wait_for
from tests.support.worker_processes import (
    guard_id,
    guard_of,
    hidden,
    kill,
    kill_at_once,
    living,
    of_worker,
    processes,
    reaper_of,
    send,
    state,
    templates,
    tree,
    wait_until_gone,
)

pytestmark = pytest.mark.slow("a hundred runs, each brought into a state and then hit")
STATES = ["idle", "call", "starting", "forking"]
DEADLY = [SIGKILL, SIGTERM, SIGINT]
SLEEPER = ["sh", "-c", "echo sleeping; exec sleep 3600"]
STALL_WITHIN_S = 30.0
START_WITHIN_S = 60.0  # a cluster's manager may take its time


def spread(times: int, **axes: Sequence[Any]) -> pytest.MarkDecorator:
    """Each combination on `times` backends, in turn: the next value of any axis is on the next backend."""
    places = itertools.product(*(enumerate(values) for values in axes.values()))
    cases = [
        on(OF_PROCESSES[(sum(index for index, _ in place) + n) % len(OF_PROCESSES)], *(value for _, value in place))
        for place in places
        for n in range(times)
    ]
    # The scope is said, else it is a function's, for the values are no fixtures, and `shared` would not be shared.
    return pytest.mark.parametrize(("backend", *axes), cases, indirect=["backend"], scope="module")


@pytest.fixture(scope="module", params=each(OF_PROCESSES))
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def own(make: Callable[..., Scheduler]) -> Scheduler:
    return make()


@pytest.fixture
def s(shared: Scheduler) -> Scheduler:
    """A run outlives all that is done to a worker, and so it goes on to the next test."""
    return shared


@pytest.fixture
def to_lose(request: pytest.FixtureRequest, shared: Scheduler, facts: Backend) -> Scheduler:
    """A run for a test that ends a guard or its template: the shared one, where each role has guards of its own."""
    found: Scheduler = shared if facts.guards_of_roles else request.getfixturevalue("own")
    return found


class Outcome:
    """Runs `work` in a thread and keeps how it ended and when."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self.value: Any = None
        self.error: BaseException | None = None
        self.ended_at = 0.0
        self._thread = threading.Thread(target=self._run, args=(work,), daemon=True)
        self._thread.start()

    def _run(self, work: Callable[[], Any]) -> None:
        try:
            self.value = work()
        except BaseException as e:
            self.error = e
        self.ended_at = time.monotonic()

    def wait(self, within: float) -> None:
        self._thread.join(within)
        assert not self._thread.is_alive(), f"the caller was told nothing within {within} s"


def begin(s: Scheduler, role: Role, at: str) -> Outcome | None:
    """Brings the run into a state; returns what the caller waits for in it."""
    if at == "call":
        outcome = Outcome(lambda: role[0].call("wait"))
        wait_for(lambda: role[0].with_options(timeout=5).submit("pid") and len(processes(s.run_id)) > 4, 5, "call")
        return outcome
    if at in ("starting", "forking"):
        start = lambda: s.start("slow", cmd=SLEEPER, ready="/never")  # noqa: E731
        fork = lambda: role.fork("slow", command=SLEEPER, ready="/never")  # noqa: E731
        outcome = Outcome(start if at == "starting" else fork)
        slow = lambda: of_worker(s.run_id, "slow/0") and "sleeping" in _log(s, "slow/0")  # noqa: E731
        wait_for(slow, START_WITHIN_S, "starting worker")
        return outcome
    return None


def _log(s: Scheduler, worker_id: str) -> str:
    path = Path(s.run_dir) / "logs" / f"{worker_id.replace('/', '-')}.log"
    return path.read_text() if path.exists() else ""


def affected(at: str) -> str:
    """The worker that a fault concerns: the one that is being started, if any is."""
    return "slow/0" if at in ("starting", "forking") else "actor/0"


def family(s: Scheduler, parent: type[sample_engines.Parent] = sample_engines.Parent) -> Role:
    role = s.start("actor")
    role.create_engine(parent)
    wait_for(lambda: len(of_worker(s.run_id, "actor/0")) == 4, 5, "worker, child, session child and daemon")
    return role


@spread(1, number=DEADLY, at=STATES)
def test_a_killed_worker_fails_its_caller_at_once_and_leaves_nothing(
    s: Scheduler, facts: Backend, number: Signals, at: str
) -> None:
    """The caller gets signal, pid, host and log tail of the dead worker in time, and its descendants are killed."""
    role = family(s)
    outcome = begin(s, role, at)
    victim_id = affected(at)
    victim = s.inspect().worker("actor/0").pid if victim_id == "actor/0" else _slow_pid(s)
    died_at = kill(victim, number)
    if outcome is None:
        outcome = Outcome(lambda: role[0].call("wait"))
    outcome.wait(facts.told_s)
    assert outcome.ended_at - died_at < facts.told_s
    if victim_id == "slow/0":
        assert isinstance(outcome.error, WorkerCreationError)
        assert outcome.error.failed == [0]
        assert number.name in str(outcome.error) and "sleeping" in str(outcome.error)
        assert role[0].call("pid") > 0
    else:
        error = outcome.error
        assert isinstance(error, WorkerFailedError), error
        assert (error.worker_id, error.signal, error.pid) == ("actor/0", number, victim)
        assert error.host == os.uname().nodename
        assert "the family is complete" in error.log_tail
    wait_for(lambda: not of_worker(s.run_id, victim_id), facts.gone_s, "end of the worker's family")


def _slow_pid(s: Scheduler) -> int:
    return wait_for(lambda: of_worker(s.run_id, "slow/0"), 5, "starting worker")[0]


@spread(1, at=STATES)
def test_a_stopped_worker_is_reported_with_stacks(s: Scheduler, at: str) -> None:
    """A worker stopped by SIGSTOP fails its caller with the stacks of its threads; a start fails as well."""
    role = family(s)
    outcome = begin(s, role, at)
    starting = at in ("starting", "forking")
    victim = _slow_pid(s) if starting else s.inspect().worker("actor/0").pid
    send(victim, SIGSTOP)
    if outcome is None:
        outcome = Outcome(lambda: role[0].call("wait"))
    outcome.wait(STALL_WITHIN_S)
    if starting:
        assert isinstance(outcome.error, WorkerCreationError)
        assert "stopped" in str(outcome.error)
        return
    assert isinstance(outcome.error, WorkerStalledError), outcome.error
    assert outcome.error.pid == victim
    assert "wait" in outcome.error.stacks or at == "idle"
    send(victim, SIGCONT)


@spread(2, number=DEADLY, at=STATES)
def test_a_killed_guard_fails_all_callers_at_once_and_leaves_nothing(
    to_lose: Scheduler, facts: Backend, number: Signals, at: str
) -> None:
    """A dead guard takes its workers along, callers are told, and other guards' workers live on."""
    s = to_lose
    role = family(s)
    outcome = begin(s, role, at)
    guard, mark = guard_of(s.run_id, affected(at)), f"ROLECALL_GUARD={guard_id(s.run_id, affected(at))}"
    owned = tree(psutil.Process(guard.ppid()))
    worker = s.inspect().worker("actor/0").pid
    send(guard.pid, number)
    if outcome is None:
        outcome = Outcome(lambda: role[0].call("wait"))
    wait_for(lambda: not living(owned), facts.gone_s, "end of the guard's tree")
    wait_until_gone(s.run_id, facts.gone_s, mark)
    outcome.wait(facts.guard_told_s)
    if at in ("starting", "forking"):
        assert isinstance(outcome.error, WorkerCreationError), outcome.error
    else:
        error = outcome.error
        assert isinstance(error, WorkerFailedError), error
        assert (error.worker_id, error.pid) == ("actor/0", worker)
        assert error.signal in (SIGKILL, SIGTERM) and error.host
        assert "the family is complete" in error.log_tail
    if facts.guards_of_roles and at == "starting":
        assert role[0].call("pid") == worker, "another role's guard and what it owns live on"


@pytest.mark.parametrize(
    ("backend", "victims"), [on(b, v) for v in ("reaper", "guard+reaper") for b in OF_PROCESSES], indirect=["backend"]
)
def test_a_killed_reaper_leaves_nothing_though_its_guard_die_with_it(
    to_lose: Scheduler, facts: Backend, victims: str
) -> None:
    """Callers are told. What the guard owned is ended by it, by the controller, or by what stands above the reaper."""
    s = to_lose
    role = family(s, sample_engines.HidingParent)
    outcome = begin(s, role, "call")
    assert outcome is not None
    mark = f"ROLECALL_GUARD={guard_id(s.run_id, 'actor/0')}"
    there = {"reaper": reaper_of(s.run_id, "actor/0"), "guard": guard_of(s.run_id, "actor/0")}
    kill_at_once([there[name].pid for name in victims.split("+")])
    outcome.wait(facts.guard_told_s)
    assert isinstance(outcome.error, WorkerFailedError) and outcome.error.worker_id == "actor/0"
    wait_until_gone(s.run_id, facts.gone_s, mark)
    wait_for(lambda: not hidden(s.run_id), facts.gone_s, "end of the child without a mark")


@spread(1, at=STATES)
def test_a_stopped_guard_is_reported_and_the_run_still_ends(own: Scheduler, at: str) -> None:
    """A stopped guard is reported as an event, calls to its workers work on, and closing succeeds."""
    role = family(own)
    events: list[str] = []
    own.subscribe(lambda topic, facts: events.append(topic))
    outcome = begin(own, role, at)
    send(guard_of(own.run_id, affected(at)).pid, SIGSTOP)
    wait_for(lambda: "guard_stalled" in events, STALL_WITHIN_S, "report of the stopped guard")
    if at in ("starting", "forking") and outcome is not None:
        outcome.wait(STALL_WITHIN_S)
        assert isinstance(outcome.error, WorkerCreationError) and "stopped" in str(outcome.error)
    elif at == "idle":
        assert role[0].call("pid") > 0, "calls go to the worker, not through its guard"


@spread(1, number=[*DEADLY, SIGSTOP], at=STATES)
def test_a_template_that_dies_or_stops_harms_no_worker_and_is_replaced(
    to_lose: Scheduler, facts: Backend, number: Signals, at: str
) -> None:
    """Running workers and calls go on, and later forks come from a new template."""
    s = to_lose
    role = family(s)
    begun = begin(s, role, "call") if at == "call" else None
    there = wait_for(lambda: templates(s.run_id), 5, "template")
    starts, survivor = None, role
    if at in ("starting", "forking"):
        starts = Outcome(lambda: s.start("more", replicas=4) if at == "starting" else role.fork("more"))
    if at == "starting" and facts.guards_of_roles:
        victims = wait_for(lambda: templates(s.run_id) - there, START_WITHIN_S, "template of the starting role")
    else:
        victims = there
    send(victims.pop(), number)
    if starts is not None:
        starts.wait(START_WITHIN_S)
        assert starts.error is None or isinstance(starts.error, WorkerCreationError), starts.error
        survivor = starts.value or role
    later = survivor.fork("later")
    later.create_engine(sample_engines.Echo)
    assert set(later.call("greet")) == {"hello"}
    if begun is not None:
        assert begun.error is None and begun.ended_at == 0.0, "the call goes on"
    else:
        assert role[0].call("pid") == s.inspect().worker("actor/0").pid


def launch(backend: str, at: str, tmp_path: Path) -> tuple[subprocess.Popen[str], str]:
    """A controller of its own in a state; returns it with its run's id."""
    env = {**os.environ, "PYTHONPATH": PYTHONPATH}
    command = [sys.executable, "-m", "tests.faults.victim_controller", backend, at, str(tmp_path)]
    controller = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env, start_new_session=True)
    assert controller.stdout is not None
    run_id = json.loads(controller.stdout.readline())["run_id"]
    wait_for(lambda: len(of_worker(run_id, "actor/0")) == 4, 5, "worker, child, session child and daemon")
    return controller, run_id


@spread(2, number=DEADLY, at=STATES)
def test_a_killed_controller_takes_everything_with_it(
    backend: str, facts: Backend, tmp_path: Path, number: Signals, at: str
) -> None:
    """No process of the run survives a killed controller."""
    controller, run_id = launch(backend, at, tmp_path)
    with controller:
        send(controller.pid, number)
        wait_until_gone(run_id, facts.controller_gone_s)
        controller.wait(facts.controller_gone_s)


TOGETHER = ["controller+reaper", "controller+guard", "controller+guard+reaper"]


@pytest.mark.parametrize(
    ("backend", "victims"),
    [on("local", v) for v in TOGETHER] + [on(b, TOGETHER[-1]) for b in OF_PROCESSES if b != "local"],
    indirect=["backend"],
)
def test_whoever_dies_with_the_controller_the_next_run_finds_nothing_or_ends_it(
    backend: str, facts: Backend, tmp_path: Path, victims: str
) -> None:
    """Whoever is left of the three ends everything; if nobody is, the next run of this user does, marked or not."""
    controller, run_id = launch(backend, "idle", tmp_path)
    with controller:
        reaper = reaper_of(run_id, "actor/0")
        there = {"controller": controller.pid, "guard": guard_of(run_id, "actor/0").pid, "reaper": reaper.pid}
        runtime_dir = private_root() / run_id
        assert hidden(run_id) and (runtime_dir / "token").exists()
        kill_at_once([there[name] for name in victims.split("+")])
        if victims != TOGETHER[-1]:
            wait_until_gone(run_id, facts.controller_gone_s)
            wait_for(lambda: not runtime_dir.exists(), facts.controller_gone_s, "end of the runtime directory")
    with make_scheduler("local", fileroot=tmp_path / "next"):
        wait_until_gone(run_id, facts.controller_gone_s)
        assert not hidden(run_id) and not runtime_dir.exists()


@spread(1, at=STATES)
def test_a_stopped_controller_is_not_dead(backend: str, facts: Backend, tmp_path: Path, at: str) -> None:
    """A controller stopped for some seconds keeps its run; killed afterwards, it takes the run along."""
    controller, run_id = launch(backend, at, tmp_path)
    with controller:
        before = set(processes(run_id))
        send(controller.pid, SIGSTOP)
        wait_for(lambda: state(controller.pid) == "T", 5, "stop")
        threading.Event().wait(3.0)  # longer than a closed connection would take to be noticed
        assert set(processes(run_id)) >= before
        send(controller.pid, SIGCONT)
        send(controller.pid, SIGKILL)
        wait_until_gone(run_id, facts.controller_gone_s)


def test_ctrl_c_ends_everything_within_seconds(backend: str, facts: Backend, tmp_path: Path) -> None:
    """As a terminal sends it: to the controller's process group, in which no worker is."""
    controller, run_id = launch(backend, "call", tmp_path)
    with controller:
        begun = time.monotonic()
        os.killpg(controller.pid, SIGINT)
        controller.wait(facts.ctrl_c_s)
        wait_until_gone(run_id, facts.ctrl_c_s - (time.monotonic() - begun))


def test_the_errors_of_a_dead_worker_stay_the_same_for_later_callers(s: Scheduler) -> None:
    """Pending and later calls fail alike, and the role can be deleted and started again."""
    role = family(s)
    pending = [role[0].submit("wait") for _ in range(3)]
    send(s.inspect().worker("actor/0").pid, SIGKILL)
    for call in pending:
        with pytest.raises(WorkerFailedError):
            call.result()
    with pytest.raises(WorkerFailedError, match="SIGKILL"):
        role[0].call("pid")
    with pytest.raises(SchedulerError):
        s.get_workers("actor")
    s.delete_workers("actor")
    s.start("actor")


def test_a_worker_that_leaves_by_itself_is_named_with_exit_code_and_log(s: Scheduler) -> None:
    """A worker that exits during a call fails it with the exit code and the last log lines."""
    role = s.start("actor")
    role.create_engine(sample_engines.Echo)
    with pytest.raises(WorkerFailedError) as caught:
        role[0].call("leave", 7)
    assert caught.value.exit_code == 7
    assert "about to leave" in caught.value.log_tail
