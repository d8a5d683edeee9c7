"""What workers print is seen where the controller runs, on request."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest

from rolecall import Scheduler
from rolecall.scheduler import echo
from tests.support.schedulers_under_test import OF_PROCESSES, each
from tests.support.talking_engines import Talking


@pytest.fixture(params=each(OF_PROCESSES))
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_prints_of_workers_are_echoed_with_their_names(
    make: Callable[..., Scheduler], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of them are there when the run has ended, without what would change the terminal."""
    with make(echo_logs=True) as s:
        actors = s.start("actor", replicas=2, cpu=1)
        actors.create_engine(Talking)
        actors.call("say", "hello\x1b[2J there")
    lines = capfd.readouterr().err.splitlines()
    for i in range(2):
        assert f"[actor/{i}] hello\\x1b[2J there" in lines


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_colours_and_no_more_than_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that has printed without end keeps no run from ending."""
    monkeypatch.setattr(echo, "REST_BYTES", 100)
    monkeypatch.setattr(echo, "PERIOD_S", 60)
    monkeypatch.delenv("NO_COLOR", raising=False)
    path, terminal = tmp_path / "merged.log", Terminal()
    copy = echo.LogEcho(path, terminal)
    path.write_bytes(b"[actor/0] one\n" + b"[actor/1] more\n" * 1000)
    copy.close()
    text = terminal.getvalue()
    assert "m[actor/0]\x1b[0m one\n" in text
    assert text.endswith(f"rolecall: the rest is in {path}\n")
    assert len(text) < 1000
    monkeypatch.setenv("NO_COLOR", "1")
    echo.LogEcho(path, terminal := Terminal()).close()
    assert terminal.getvalue().startswith("[actor/0] one\n")
