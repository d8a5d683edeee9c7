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
from rolecall.protocol.guard import NoArguments
from rolecall.transport.loop import IOThread
from tests.placement.sidecar_requests import CRASH, ECHO, FAIL, HANG, NOTHING, SAY, UNKNOWN, Said, Text
from tests.support.checkout import PYTHONPATH

LONG_S = 30.0
SHORT_S = 0.2


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "sidecar.log"


@pytest.fixture
def sidecar(log: Path) -> Iterator[Sidecar[Text]]:
    io = IOThread("test-io")
    made = Sidecar("tests.placement.sidecar_program", log, {}, io, Text)
    yield made
    made.close(patience=0.1)
    io.close()


def test_a_request_is_answered(sidecar: Sidecar[Text]) -> None:
    """The answer is the message that the program has returned, and no news."""
    assert sidecar.ask(ECHO, Text(text="aü"), timeout=LONG_S) == Text(text="aü")
    assert sidecar.latest("s") is None


def test_news_are_the_latest_of_each_name(sidecar: Sidecar[Text]) -> None:
    """Only the latest news of a name are kept, and can be waited for."""
    assert sidecar.ask(SAY, Said(name="s", text="queued"), timeout=LONG_S)
    assert sidecar.ask(SAY, Said(name="s", text="running"))
    assert sidecar.wait_for("s", bool, LONG_S)
    assert sidecar.ask(ECHO, Text())
    assert sidecar.latest("s") == Text(text="running")


def test_it_is_silent_until_there_is_an_answer(sidecar: Sidecar[Text]) -> None:
    """A request without an answer marks the sidecar silent until it answers again."""
    assert not sidecar.silent
    assert sidecar.ask(NOTHING, NoArguments(), timeout=SHORT_S) is None
    assert sidecar.silent
    assert sidecar.ask(ECHO, Text(), timeout=LONG_S)
    assert not sidecar.silent


def test_what_fails_takes_nothing_with_it(sidecar: Sidecar[Text]) -> None:
    """An exception or an unknown method is raised at the caller, and the sidecar goes on."""
    with pytest.raises(ZeroDivisionError):
        sidecar.ask(FAIL, NoArguments(), timeout=LONG_S)
    with pytest.raises(KeyError, match="unknown"):
        sidecar.ask(UNKNOWN, NoArguments(), timeout=LONG_S)
    sidecar.tell(FAIL, NoArguments())
    sidecar.tell(UNKNOWN, NoArguments())
    assert sidecar.ask(ECHO, Text(), timeout=LONG_S)


def test_its_end_is_news_with_its_last_words(sidecar: Sidecar[Text]) -> None:
    """And whoever waits for something of it waits no longer."""
    sidecar.tell(CRASH, Text(text="the library has had enough"))
    assert not sidecar.wait_for("joined", bool, LONG_S)
    assert sidecar.lost == "the library has had enough"
    assert sidecar.ask(ECHO, Text(), timeout=LONG_S) is None
    sidecar.tell(FAIL, NoArguments())  # lost, and no error


def test_a_request_under_way_ends_with_it(sidecar: Sidecar[Text]) -> None:
    """A pending request returns when the sidecar dies, which is reported with its last words."""
    begun = time.monotonic()
    assert sidecar.ask(CRASH, Text(text="no more"), timeout=LONG_S) is None
    assert time.monotonic() - begun < LONG_S
    assert sidecar.lost == "no more"


def test_its_end_is_known_though_its_log_was_removed(sidecar: Sidecar[Text], log: Path) -> None:
    """Without a log file the report names the path."""
    log.unlink()
    sidecar.tell(CRASH, Text(text="to nobody"))
    assert not sidecar.wait_for("joined", bool, LONG_S)
    assert sidecar.lost == f"see {log}"


def test_the_end_of_one_that_says_nothing_points_to_its_log(sidecar: Sidecar[Text], log: Path) -> None:
    """A death without output is reported with the path of the log."""
    sidecar.tell(CRASH, Text())
    assert not sidecar.wait_for("joined", bool, LONG_S)
    assert sidecar.lost == f"see {log}"


def test_closing_lets_it_end_by_itself(sidecar: Sidecar[Text], log: Path) -> None:
    """Twice is once."""
    assert sidecar.close(LONG_S)
    assert log.read_text() == "ended well\n"
    assert sidecar.close(LONG_S)


def test_one_that_hangs_is_killed(sidecar: Sidecar[Text]) -> None:
    """Closing waits for its grace period, then kills the sidecar."""
    assert sidecar.ask(HANG, NoArguments(), timeout=LONG_S)
    assert not sidecar.close(SHORT_S)
    assert sidecar.ask(ECHO, Text()) is None


CONTROLLER = """
import os, sys
from pathlib import Path
from rolecall.transport.loop import IOThread
from rolecall.placement.sidecar import Sidecar
from tests.placement.sidecar_requests import ECHO, Text

sidecar = Sidecar("tests.placement.sidecar_program", Path(sys.argv[1]), {}, IOThread(), Text)
assert sidecar.ask(ECHO, Text(text="1"), timeout=30) == Text(text="1")
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
