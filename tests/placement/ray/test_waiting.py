"""Roles that wait for a place, and what is said when there is none."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rolecall import RayScheduler
from rolecall.errors import WorkerConfigurationError, WorkerCreationError
from rolecall.protocol.guard import Method
from rolecall.protocol.message import to_json
from rolecall.protocol.ray_driver import LOOK, PLACE, OfGuard
from tests.clusters.ray_census import Census
from tests.placement.ray.ray_engines import Inside
from tests.support.ray_cluster import placement_of


def until(condition: Callable[[], object]) -> None:
    pause = threading.Event()
    while not condition():
        pause.wait(0.02)


def test_a_group_that_cannot_be_placed_times_out_with_what_is_asked_and_free(
    make: Callable[..., RayScheduler], census: Census
) -> None:
    """The error shows what was asked for and what each node has free, and nothing is left."""
    s = make(queue_timeout=1.5)
    s.start("actor", replicas=2, gpu=4, cpu=1)
    with pytest.raises(WorkerCreationError) as caught:
        s.start("rollout", gpu=3, cpu=1, ray_placement_strategy="separate")
    text = str(caught.value)
    assert f"rolecall/{s.run_id}/rollout/0 asks for {{1 CPU, 3 GPU}}" in text
    assert text.count("127 of 128 CPU, 0 of 4 GPU") == 2
    assert [group["name"] for group in census.take()["groups"]] == [f"rolecall/{s.run_id}/actor"]


def test_a_group_that_no_node_could_ever_hold_is_said_to_be_so(make: Callable[..., RayScheduler]) -> None:
    """At once where Ray has said that nodes are not added on demand, else when its time in the queue is over."""
    known = r"asks for 1000 CPU of one node, and the largest of the cluster has 128 CPU"
    unknown = r"no nodes are large enough.*asks for \{1000 CPU\}"
    with pytest.raises((WorkerConfigurationError, WorkerCreationError), match=f"{known}|{unknown}"):
        make(queue_timeout=1.5).start("actor", cpu=1000)


def test_a_worker_larger_than_a_node_is_refused_at_once(s: RayScheduler) -> None:
    """A spec that exceeds every node fails before Ray is asked."""
    with pytest.raises(WorkerConfigurationError, match="asks for 5 GPUs of one node, and nodes have 4"):
        s.start("actor", gpu=5, cpu=1)


def test_a_role_waits_until_its_place_is_free(s: RayScheduler, census: Census) -> None:
    """Also when only a part of its groups was placed at first; until then the run's state says what it waits for."""
    s.start("actor", gpu=4, cpu=1)
    started = threading.Thread(
        target=lambda: s.start("rollout", replicas=2, gpu=4, cpu=1, ray_placement_strategy="separate")
    )
    started.start()
    until(lambda: "PENDING" in {group["state"] for group in census.take()["groups"]})
    until(lambda: "1 CPU" in s.inspect().waiting.get("rollout", ""))
    s.delete_workers("actor")
    started.join()
    assert s.inspect().waiting == {}
    assert [worker.id for worker in s.get_workers("rollout")] == ["rollout/0", "rollout/1"]


def test_ctrl_c_while_waiting_removes_the_group(s: RayScheduler, census: Census) -> None:
    """The interrupt arrives as usual, and the scheduler can be used afterwards."""

    def interrupt() -> None:
        until(lambda: census.take()["groups"])
        signal.raise_signal(signal.SIGINT)

    other = threading.Thread(target=interrupt)
    with pytest.raises(KeyboardInterrupt):
        other.start()
        s.start("actor", replicas=9, gpu=4, cpu=1)  # each of them has room on a node
    other.join()
    assert not census.take()["groups"]
    s.start("actor", cpu=1)


def test_ctrl_c_as_the_order_was_sent_takes_it_back(s: RayScheduler, census: Census) -> None:
    """And as it is being sent: an order that never came is taken back as well."""
    driver = placement_of(s).driver
    told = driver.tell

    def interrupted(method: Method[Any, None], request: Any) -> None:
        if method is not PLACE:
            return told(method, request)
        if request.wanted.groups[0].name.endswith("/sent"):
            told(method, request)
        signal.raise_signal(signal.SIGINT)

    driver.tell = interrupted  # type: ignore[method-assign]
    for role in ("sent", "unsent"):
        with pytest.raises(KeyboardInterrupt):
            s.start(role, cpu=1)
        assert not census.take()["groups"] and not census.take()["actors"]
    driver.tell = told  # type: ignore[method-assign]
    s.start("sent", cpu=1)


def test_an_order_says_the_environment_once_however_many_workers(
    s: RayScheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And each guard gets it, with the group of its own."""
    driver = placement_of(s).driver
    sent: list[str] = []
    told = driver.tell

    def weighed(method: Method[Any, None], request: Any) -> None:
        sent.append(to_json(request))
        told(method, request)

    monkeypatch.setattr(driver, "tell", weighed)
    role = s.start("actor", replicas=2, cpu=1, ray_placement_strategy="separate")
    role.create_engine(Inside)
    assert "".join(sent).count('"PYTHONPATH"') == 1
    name = "ROLECALL_RAY_PLACEMENT_GROUP"
    assert role.call("environment", name) == [{name: f"rolecall/{s.run_id}/actor/{i}"} for i in (0, 1)]


def test_what_cannot_be_looked_at_is_answered_in_words(s: RayScheduler) -> None:
    """Whoever asks why a guard ended must not take an error of Ray's for silence."""
    s.start("actor", cpu=1)
    found = placement_of(s).driver.ask(LOOK, OfGuard(name="g1", ordinal=7))
    assert found is not None and "out of range" in found


def test_a_guard_that_cannot_start_is_reported_with_its_words(
    make: Callable[..., RayScheduler], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The output of a guard that fails on its node is in the error."""
    s = make()
    (tmp_path / "msgspec.py").write_text("raise ImportError('this node has no msgspec')")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(WorkerCreationError, match=r"guard ended with status 1(.|\n)*this node has no msgspec"):
        s.start("actor", cpu=1)


def test_handlers_of_signals_are_the_users(s: RayScheduler) -> None:
    """Ray takes over SIGTERM in a process that it is used in; ours is another."""
    s.start("actor", cpu=1)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
