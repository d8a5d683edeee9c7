"""No port is leased twice, however many ask at once from however many runs, and each is given back."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rolecall.errors import PortAllocationError
from rolecall.guard.ports import PortLeases
from tests.security.live_run import LiveRun, live_run
from tests.support.attacker import send_http

ASKERS = 100


@pytest.fixture
def runs(tmp_path: Path) -> Iterator[tuple[LiveRun, LiveRun]]:
    """Two runs of one host at the same time."""
    with live_run(tmp_path, "first", grace_s=0.0) as first, live_run(tmp_path, "second", grace_s=0.0) as second:
        yield first, second


def all_at_once(ask: Callable[[int], list[int]]) -> list[int]:
    """Every port that `ASKERS` threads got, all asking at the same moment."""
    ports: list[list[int]] = [[]] * ASKERS
    failures: list[BaseException] = []
    gate = threading.Barrier(ASKERS)

    def work(number: int) -> None:
        gate.wait()
        try:
            ports[number] = ask(number)
        except BaseException as e:
            failures.append(e)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(ASKERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures[0]
    return [port for got in ports for port in got]


def ask(address: str, token: str, path: str, body: dict[str, Any]) -> Any:
    answer = send_http(address, "POST", path, body, token=token)
    assert answer.status == 200, answer.body
    return answer.json


def held_by_others(ports: list[int]) -> list[int]:
    """Which of the ports a new run could not lease now."""
    taken = []
    for port in ports:
        leases = PortLeases("a stranger's run", span=(port, port))
        try:
            leases.lease("a stranger", 1)
        except PortAllocationError:
            taken.append(port)
        finally:
            leases.close()
    return taken


@pytest.mark.slow("two live runs")
def test_ports_of_one_hundred_requests_of_two_runs_are_all_different(runs: tuple[LiveRun, LiveRun]) -> None:
    """From workers and guards; while the runs live nobody else gets one, and afterwards everybody may."""

    def alloc(number: int) -> list[int]:
        run = runs[number % 2]
        if number % 4 < 2:
            return list(ask(run.worker, run.token, "/alloc_ports", {"count": 3})["ports"])
        return list(ask(run.guard, run.token, "/alloc_ports", {"owner": "me", "count": 3})["ports"])

    ports = all_at_once(alloc)
    assert len(ports) == len(set(ports)) == 3 * ASKERS
    own = [int(port) for run in runs for worker in run.actor.workers for port in worker.worker_ports]
    assert not set(own) & set(ports)
    assert held_by_others(ports) == ports
    for run in runs:
        run.scheduler.close()
    assert held_by_others([*ports, *own]) == []


@pytest.mark.slow("one hundred forks")
def test_one_hundred_forks_of_two_runs_share_no_port(runs: tuple[LiveRun, LiveRun]) -> None:
    """As real processes, each with ports of its own; the half that is deleted gives its ports back."""
    program = ["sleep", "{ports[1]}", "{ports[1]}"]  # for so many seconds, which are hours

    def fork(number: int) -> list[int]:
        run = runs[number % 2]
        body = {"role": f"fork{number}", "worker_index": 0, "raw_cmd": program}
        return [int(ask(run.worker, run.token, "/fork", body)["port"])]

    first = all_at_once(fork)
    rows = [row for run in runs for row in send_http(run.guard, "GET", "/workers", token=run.token).json]
    ports = [port for row in rows for port in row["ports"]]
    assert len(rows) == ASKERS + 2 and len(ports) == len(set(ports)) == 2 * (ASKERS + 2)
    assert set(first) <= set(ports)

    def kill(number: int) -> list[int]:
        run = runs[number % 2]
        ask(run.worker, run.token, "/kill_forked_worker", {"role": f"fork{number}", "worker_index": 0})
        return []

    of = {row["worker"]: row["ports"] for row in rows}
    all_at_once(lambda number: kill(number) if number < ASKERS // 2 else [])
    given_back = [port for number in range(ASKERS // 2) for port in of[f"fork{number}/0"]]
    still_held = [port for number in range(ASKERS // 2, ASKERS) for port in of[f"fork{number}/0"]]
    assert held_by_others(given_back) == [] and held_by_others(still_held) == still_held
    for run in runs:
        run.scheduler.close()
    assert held_by_others(ports) == []
