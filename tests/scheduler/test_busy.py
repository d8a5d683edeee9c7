"""A worker that is busy is not a worker that hangs: it raises no alarm."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rolecall import LocalScheduler
from tests.support import sample_engines

pytestmark = pytest.mark.slow("twenty seconds of work", seconds=21)

BUSY_S = 20  # longer than a connection may be silent in any state
AT_WORK_S = 10.0  # twice as long as a worker may be stopped


@pytest.fixture
def s(tmp_path: Path) -> Iterator[LocalScheduler]:
    with LocalScheduler(experiment="busy", trial="t", fileroot=tmp_path, preload=[]) as scheduler:
        yield scheduler


def test_the_interpreter_lock_held_or_a_long_step_raises_no_alarm(s: LocalScheduler) -> None:
    """The lock held asleep, held at work, and a step that sleeps without it, side by side."""
    events: list[tuple[str, Any]] = []
    s.subscribe(lambda topic, facts: events.append((topic, facts)))
    role = s.start("busy", replicas=3)
    role.create_engine(sample_engines.Holder)
    role.with_options(engine="echo").create_engine(sample_engines.Echo)
    calls = [
        role[0].submit("hold_asleep", BUSY_S),
        role[1].submit("hold_at_work", AT_WORK_S),
        role[2].with_options(engine="echo").submit("sleep", float(BUSY_S)),
    ]
    assert [call.result() for call in calls] == ["held", "held", "slept"]
    assert events == []
    assert role.with_options(engine="echo").call("greet") == ["hello"] * 3
