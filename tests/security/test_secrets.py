"""The run's token is in one file that only the user may read, and nowhere else where somebody could see it."""

from __future__ import annotations

import copy
import dataclasses
import logging
import os
import pickle
import signal
import stat
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from rich.pretty import pretty_repr

from rolecall import LocalScheduler
from rolecall.errors import EngineCallError, EngineCreationError, WorkerCreationError, WorkerFailedError
from rolecall.protocol.guard_config import GuardConfig
from rolecall.protocol.token import Token
from rolecall.protocol.worker_methods import WorkerConfig
from tests.security.live_run import LiveRun, command_line_of, environment_of, live_run, mode
from tests.support import sample_engines
from tests.support.attacker import exchange, frame, guard_hello, hello, send_http

pytestmark = pytest.mark.slow("a live run for each test")


@pytest.fixture
def run(tmp_path: Path) -> Iterator[LiveRun]:
    with live_run(tmp_path, replicas=2, grace_s=1.0) as run:
        yield run


def places_of(run: LiveRun) -> list[str]:
    """Where the token is, of all places that another program could look into."""
    token = run.token.encode()
    processes = run.processes()
    assert {"rc:reaper", "rc:guard", "rc:template"} <= {p.name() for p in processes}
    found = [f"command line of {p.pid}" for p in processes if token in command_line_of(p.pid)]
    found += [f"environment of {p.pid}" for p in processes if token in environment_of(p.pid)]
    for path in files_of(run):
        if token in path.read_bytes():
            found.append(f"{path.name} {mode(path):o}")
    return found


def files_of(run: LiveRun) -> Iterator[Path]:
    for folder in (run.run_dir, run.runtime_dir):
        for path in folder.rglob("*"):
            if path.is_file():
                yield path


def test_the_token_is_in_one_private_file(run: LiveRun) -> None:
    """In no command line, environment, log or state; only in `token`, which is 0600. The directories are 0700."""
    child = run.actor.fork("child")
    child.create_engine(sample_engines.Parent)
    run.actor.fork("program", command=["sleep", "3600"])
    assert places_of(run) == ["token 600"]
    for folder in (run.runtime_dir, run.runtime_dir.parent, *(p for p in run.runtime_dir.rglob("*") if p.is_dir())):
        assert mode(folder) == 0o700, folder
    for path in run.runtime_dir.rglob("*"):
        if not path.is_dir():
            assert mode(path) == 0o600, path
    sockets = [p for p in run.runtime_dir.rglob("*") if stat.S_ISSOCK(p.lstat().st_mode)]
    assert {p.name for p in sockets} == {
        "controller.sock",
        "g0.sock",
        "actor-0.sock",
        "actor-1.sock",
        "child-0.sock",
        "child-1.sock",
    }


def test_no_failure_shows_the_token(run: LiveRun, caplog: pytest.LogCaptureFixture) -> None:
    """Errors of engines, refused strangers, a crash and a failed start tell what happened, and not the secret."""
    shown: list[str] = []
    with pytest.raises(EngineCallError) as failed:
        run.actor.call("fail", "no luck")
    shown += told(failed.value)
    with pytest.raises(EngineCreationError) as failed_creation:
        run.actor.with_options(engine="bad").create_engine(sample_engines.BadConstructor)
    shown += told(failed_creation.value)
    for address in run.listeners.values():
        shown.append(repr(exchange(address, hello("wrong"))))
        shown.append(repr(send_http(address, "GET", "/health")))
        shown.append(repr(send_http(address, "GET", "/nonsense", token=run.token)))
        shown.append(repr(send_http(address, "GET", "/health", token=run.token, headers={"Host": "evil"})))
        shown.append(repr(send_http(address, "POST", "/call", b"{", token=run.token)))
        shown.append(repr(exchange(address, frame(msgspec.msgpack.encode([run.token.encode(), ["no hello", 1]])))))
    shown.append(repr(send_http(run.worker, "POST", "/call", {"method": "fail", "args": ["x"]}, token=run.token)))
    with pytest.raises(WorkerFailedError) as died:
        run.actor[0].call("leave", 3)
    shown += told(died.value)
    with pytest.raises(WorkerCreationError) as never:
        run.scheduler.start("broken", cmd=["sh", "-c", "env; exit 1"])
    shown += told(never.value)
    os.kill(run.actor[1].call("pid"), signal.SIGSEGV)
    with pytest.raises(WorkerFailedError) as crashed:
        run.actor[1].call("sleep", 60)
    shown += [*told(crashed.value), caplog.text]
    assert [text for text in shown if run.token in text] == []
    assert places_of(run) == ["token 600"]


def told(error: BaseException) -> list[str]:
    """Everything that a program may print of an error, the local variables of its frames included."""
    with_locals = traceback.TracebackException.from_exception(error, capture_locals=True)
    return [str(error), repr(error), repr(vars(error)), "".join(with_locals.format())]


def test_the_guards_death_leaves_no_token_behind(run: LiveRun) -> None:
    """Killed, its reaper removes the private directory; what stays in the run's directory has no secret in it."""
    token = run.token.encode()
    guard = next(p for p in run.processes() if p.name() == "rc:guard")
    call = run.actor[0].submit("sleep", 60)
    guard.kill()
    with pytest.raises(WorkerFailedError):
        call.result()
    run.scheduler.close()
    assert not run.runtime_dir.exists()
    assert [path for path in files_of(run) if token in path.read_bytes()] == []


def test_no_repr_shows_the_token(run: LiveRun) -> None:
    """Of the scheduler and everything that hangs below it: whatever is printed, logged or shown by a debugger."""
    seen: dict[int, Any] = {}
    collect(run.scheduler, seen, 12)
    assert len(seen) > 200
    shown = [type(value).__name__ for value in seen.values() if not is_secret(value) and run.token in safe_repr(value)]
    assert shown == []


def is_secret(value: Any) -> bool:
    """A plain string or bytes is what it is; what matters is what holds it."""
    return isinstance(value, str | bytes | bytearray | memoryview)


def collect(value: Any, seen: dict[int, Any], depth: int) -> None:
    """Every object that can be reached through attributes and containers."""
    if id(value) in seen or depth == 0 or isinstance(value, type | int | float | None.__class__):
        return
    seen[id(value)] = value
    if isinstance(value, dict):
        inner = [*value.values()]
    elif isinstance(value, list | tuple | set | frozenset):
        inner = list(value)
    elif type(value).__module__.startswith("rolecall"):
        slots = [name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ())]
        inner = [
            getattr(value, name, None) for name in (*getattr(value, "__dict__", {}), *slots) if name != "__weakref__"
        ]
    else:
        inner = []
    for item in inner:
        collect(item, seen, depth - 1)


def safe_repr(value: Any) -> str:
    try:
        return repr(value)
    except TypeError:
        return ""  # an object that has no repr shows nothing


def test_configurations_do_not_show_their_token() -> None:
    """The values that carry it from process to process keep it to themselves."""
    secret = "5ec4e7" * 10
    guard = GuardConfig(run_id="r", guard_id="g", token=secret, controller=[], run_dir="", runtime_dir="")
    worker = WorkerConfig(guard=guard, worker_id="a/0", socket="")
    for config in (guard, worker):
        for shown in (repr(config), str(config), pretty_repr(config)):
            assert secret not in shown and "token='***'" in shown, type(config)


def test_a_token_is_neither_pickled_nor_copied_into_text() -> None:
    """It must be asked for by name."""
    token = Token("5ec4e7" * 10)
    for text in (str(token), f"{token}", f"{token!r}", repr([token])):
        assert "5ec4e7" not in text
    with pytest.raises(TypeError, match="not pickled"):
        pickle.dumps(token)
    with pytest.raises(TypeError):
        copy.copy(token)
    assert not dataclasses.is_dataclass(token)


def test_each_run_has_a_token_of_its_own(tmp_path: Path) -> None:
    """256 random bits, as 64 hexadecimal digits."""
    tokens = set()
    for trial in ("a", "b"):
        with live_run(tmp_path, trial) as run:
            assert len(bytes.fromhex(run.token)) == 32
            tokens.add(run.token)
    assert len(tokens) == 2


def test_a_directory_that_somebody_prepared_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A link in place of the private root is passed by, nothing of ours lies there; a wide one is made narrow."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    root = Path(os.environ["TMPDIR"]) / f"rolecall-{os.getuid()}"
    moved = root.with_name("moved")
    if root.exists():
        root.rename(moved)
    try:
        root.symlink_to(elsewhere)
        with LocalScheduler(experiment="e", trial="t", fileroot=tmp_path, preload=[]):
            other = root.with_name(f"{root.name}-1")
            assert mode(other) == 0o700 and list(elsewhere.iterdir()) == []
        root.unlink()
        root.mkdir(mode=0o777)
        root.chmod(0o777)
        with live_run(tmp_path) as run:
            assert mode(root) == 0o700 and mode(run.runtime_dir) == 0o700
    finally:
        if root.is_symlink():
            root.unlink()
        root.with_name(f"{root.name}-1").rmdir()
        if moved.exists() and not root.exists():
            moved.rename(root)


def test_debug_logs_do_not_show_the_token(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """At every level of every logger of the controller."""
    with caplog.at_level(logging.DEBUG), live_run(tmp_path) as run:
        token = run.token
        exchange(run.controller, guard_hello(token, "g9", ""))
        run.actor.call("greet")
    assert token not in caplog.text
