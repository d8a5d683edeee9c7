"""A process beside the controller: what it is told, what it tells, and how either side's end ends the other."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rolecall.placement.sidecar import Sidecar
from rolecall.transport.loop import IOThread
from tests.support.checkout import PYTHONPATH

LONG_S = 30.0
SHORT_S = 0.2


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "sidecar.log"


@pytest.fixture
def sidecar(log: Path) -> Iterator[Sidecar]:
    io = IOThread("test-io")
    made = Sidecar("tests.placement.sidecar_program", log, {}, io)
    yield made
    made.close(patience=0.1)
    io.close()


def test_a_question_is_answered(sidecar: Sidecar) -> None:
    assert sidecar.ask("echo", value={"a": [1, "ü"]}, timeout=LONG_S) == (True, {"a": [1, "ü"]})
    assert sidecar.ask("echo", value=None) == (True, None)
    assert sidecar.news == {}


def test_news_are_the_latest_of_each_key(sidecar: Sidecar) -> None:
    assert sidecar.ask("say", key="state", value="queued", timeout=LONG_S)[0]
    assert sidecar.ask("say", key="state", value="running")[0]
    assert sidecar.wait_for("state", LONG_S)
    assert sidecar.ask("echo", value=0)[0]
    assert sidecar.news == {"state": "running"}


def test_it_is_silent_until_there_is_an_answer(sidecar: Sidecar) -> None:
    assert not sidecar.silent
    assert sidecar.ask("nothing", timeout=SHORT_S) == (False, None)
    assert sidecar.silent
    assert sidecar.ask("echo", value=2, timeout=LONG_S) == (True, 2)
    assert not sidecar.silent


def test_what_fails_takes_nothing_with_it(sidecar: Sidecar) -> None:
    with pytest.raises(ZeroDivisionError):
        sidecar.ask("fail", timeout=LONG_S)
    with pytest.raises(KeyError, match="no such question"):
        sidecar.ask("no such question", timeout=LONG_S)
    sidecar.tell("fail")
    sidecar.tell("no such order")
    assert sidecar.ask("echo", value=1, timeout=LONG_S) == (True, 1)


def test_its_end_is_news_with_its_last_words(sidecar: Sidecar) -> None:
    """And whoever waits for something of it waits no longer."""
    sidecar.tell("crash", words="the library has had enough")
    assert not sidecar.wait_for("joined", LONG_S)
    assert sidecar.lost == "the library has had enough"
    assert sidecar.ask("echo", value=1, timeout=LONG_S) == (False, None)
    sidecar.tell("say", key="state", value="lost, and no error")


def test_a_question_under_way_ends_with_it(sidecar: Sidecar) -> None:
    begun = time.monotonic()
    assert sidecar.ask("crash", words="no more", timeout=LONG_S) == (False, None)
    assert time.monotonic() - begun < LONG_S
    assert sidecar.lost == "no more"


def test_its_end_is_known_though_its_log_was_removed(sidecar: Sidecar, log: Path) -> None:
    log.unlink()
    sidecar.tell("crash", words="to nobody")
    assert not sidecar.wait_for("joined", LONG_S)
    assert sidecar.lost == f"see {log}"


def test_the_end_of_one_that_says_nothing_points_to_its_log(sidecar: Sidecar, log: Path) -> None:
    sidecar.tell("crash", words="")
    assert not sidecar.wait_for("joined", LONG_S)
    assert sidecar.lost == f"see {log}"


def test_closing_lets_it_end_by_itself(sidecar: Sidecar, log: Path) -> None:
    """Twice is once."""
    assert sidecar.close(LONG_S)
    assert log.read_text() == "ended well\n"
    assert sidecar.close(LONG_S)


def test_one_that_hangs_is_killed(sidecar: Sidecar) -> None:
    assert sidecar.ask("hang", timeout=LONG_S)[0]
    assert not sidecar.close(SHORT_S)
    assert sidecar.ask("echo", value=1) == (False, None)


CONTROLLER = """
import os, sys
from pathlib import Path
from rolecall.transport.loop import IOThread
from rolecall.placement.sidecar import Sidecar

sidecar = Sidecar("tests.placement.sidecar_program", Path(sys.argv[1]), {}, IOThread())
assert sidecar.ask("echo", value=1, timeout=30) == (True, 1)
if "fork" in sys.argv and os.fork() == 0:
    os.read(0, 1)
    os._exit(0)
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("how", ["alone", "fork"])
def test_it_ends_when_the_controller_is_killed(log: Path, how: str) -> None:
    """Though a child of the controller's has inherited the connection."""
    with subprocess.Popen(
        [sys.executable, "-c", CONTROLLER, str(log), how],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": PYTHONPATH},
        text=True,
    ) as controller:
        assert controller.stdout is not None
        assert controller.stdout.readline() == "ready\n"
        controller.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + LONG_S
    while "ended well" not in log.read_text() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert log.read_text() == "ended well\n"
