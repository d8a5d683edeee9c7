"""Listeners are told on the I/O thread, one at a time, whoever had to be asked why something ended."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from typing import Any

import pytest

from rolecall import Scheduler
from tests.support import sample_engines
from tests.support.backend import Backend
from tests.support.schedulers_under_test import OF_PROCESSES, each


@pytest.fixture(params=each(OF_PROCESSES))
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_a_listener_hears_of_a_killed_worker_on_the_io_thread(make: Callable[..., Scheduler], facts: Backend) -> None:
    """Where it cannot close the scheduler, which waits for that thread, and is told so."""
    s = make()
    heard: list[tuple[str, str, str]] = []
    told = threading.Event()

    def listener(topic: str, news: dict[str, Any]) -> None:
        try:
            s.close()
        except Exception as e:
            heard.append((topic, threading.current_thread().name, str(e)))
        told.set()

    s.subscribe(listener)
    role = s.start("actor", cpu=1, mem=1)
    role.create_engine(sample_engines.Echo)
    os.kill(role[0].call("pid"), signal.SIGKILL)
    assert told.wait(facts.guard_told_s)
    ((topic, thread, words),) = heard
    assert (topic, thread) == ("exited", "rolecall-io")
    assert "do it in another thread" in words
