"""Only classes that a user wrote become engines, and only their public methods can be called."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rolecall.errors import EngineImportError, EngineNotFoundError
from tests.security import refused_engines
from tests.security.live_run import LiveRun, live_run
from tests.support.attacker import send_http

REFUSED = (
    "os.system",
    "os:system",
    "posix.system",
    "nt.system",
    "subprocess.Popen",
    "subprocess:Popen",
    "subprocess.run",
    "_posixsubprocess.fork_exec",
    "pathlib.Path",
    "pathlib:Path",
    "builtins.eval",
    "builtins.object",
    "builtins:type",
    "types.FunctionType",
    "ctypes.CDLL",
    "threading.Thread",
    "multiprocessing.Process",
    "multiprocessing.context:Process",
    "importlib.machinery.SourceFileLoader",
    "_frozen_importlib_external:SourceFileLoader",
    "code.InteractiveInterpreter",
    "test.support.EnvironmentVarGuard",
    "idlelib.run:Executive",
    "antigravity.x",
    "this.x",
    # re-exported under an innocent module's name
    "tests.security.refused_engines.Path",
    "tests.security.refused_engines:Path",
    "tests.security.refused_engines:Runner",
    "tests.security.refused_engines:os.system",
    "tests.security.refused_engines.os.system",
    "tests.security.refused_engines.subprocess.Popen",
    "tests.security.refused_engines:subprocess.Popen",
    "tests.security.refused_engines:Engine.__class__",
    "tests.security.refused_engines:Engine.__base__",
    "tests.security.refused_engines:Engine.Tool",
    "tests.security.refused_engines:__loader__.__class__",
    "tests.security.refused_engines:__spec__.__class__",
    "tests.security.refused_engines:__builtins__",
    "rolecall.worker.service.os.system",
    "rolecall.worker.loading:importlib.machinery.SourceFileLoader",
    "numpy.os.system",
    "numpy:os.system",
    # no class
    "tests.security.refused_engines.function",
    "tests.security.refused_engines:instance",
    "tests.security.refused_engines:Engine.method",
    "refused_engines",
    "refused_engines:",
    "tests.security.refused_engines:missing",
    "no_such_module.Engine",
    "os",
    "os.path",
    # no path
    "",
    ".",
    ":",
    "..Engine",
    ".refused_engines.Engine",
    "tests.security.refused_engines:Engine()",
    "tests.security.refused_engines:Engine;import os",
    "refused_engines/Engine",
    "../refused_engines:Engine",
    "/etc/passwd",
    "refused_engines\0:Engine",
    "tests.security.refused_engines:Engine\n",
    "refused_engines::Engine",
    "tests.security.refused_engines:Engine:x",
    "a" * 5000 + ":Engine",
    # programs
    "__main__:os.system",
    "__main__.os:system",
    "__main__:__builtins__",
    "__main__:Newborn",
    "__main__:socket.socket",
    "__rolecall_main__:os.system",
    "rolecall.guard.__main__:os.system",
    "pip.__main__:sys",
)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveRun]:
    """For tests that leave it as it was."""
    with live_run(tmp_path_factory.mktemp("run")) as run:
        yield run


@pytest.fixture
def run(tmp_path: Path) -> Iterator[LiveRun]:
    with live_run(tmp_path) as run:
        yield run


def test_only_a_users_class_becomes_an_engine(run: LiveRun, tmp_path: Path) -> None:
    """The standard library under whatever name, functions, instances, modules, programs: refused, and nothing ran."""
    canary = tmp_path / "canary"
    engine = run.actor.with_options(engine="evil")
    for path in REFUSED:
        with pytest.raises(EngineImportError) as refused:
            engine.create_engine(path, f"touch {canary}", shell=True)
        assert refused.value.reason, path
        wanted = {"engine": path, "engine_name": "evil", "init_args": [["touch", str(canary)]]}
        answer = send_http(run.worker, "POST", "/create_engine", wanted, token=run.token)
        assert answer.status == 400, (path, answer.body)
        assert not canary.exists(), path
    assert run.actor.call("greet") == ["hello"]
    assert send_http(run.worker, "GET", "/health", token=run.token).json["engines"] == ["actor/0"]
    engine.create_engine("tests.security.refused_engines:Engine", "fine")
    assert engine.call("method") == ["fine"]
    nested = run.actor.with_options(engine="nested")
    nested.create_engine("tests.security.refused_engines:Engine.Inner")
    assert nested.call("method") == ["inner"]


@pytest.mark.parametrize("path", [None, 5, b"os.system", ["os.system"], {"__reduce__": 1}, True])
def test_a_path_that_is_no_text_is_refused(shared: LiveRun, path: Any) -> None:
    """An engine is named by a class or by text, on either side."""
    with pytest.raises(EngineImportError):
        shared.actor.create_engine(path)
    wanted = {"engine": repr(path) if path is None else str(path)}
    answer = send_http(shared.worker, "POST", "/create_engine", wanted, token=shared.token)
    assert answer.status == 400


def test_only_public_methods_are_called(run: LiveRun) -> None:
    """No private, dunder or mangled name, no property of any kind, nothing that is no method; no getter runs."""
    engine = run.actor.with_options(engine="e")
    engine.create_engine(refused_engines.Engine, "fine")
    for name in (
        "_private",
        "__init__",
        "__class__",
        "__getattribute__",
        "__reduce__",
        "__dict__",
        "_Engine__mangled",
        "prop",
        "cached",
        "lazy",
        "value",
        "missing",
        "",
        " method",
        "method ",
        "method\0",
        "method.__func__",
        "mro",
        "a" * 5000,
    ):
        with pytest.raises(EngineNotFoundError):
            engine.call(name)
        call = {"method": name, "engine_name": "e"}
        assert send_http(run.worker, "POST", "/call", call, token=run.token).status == 400, name
        with pytest.raises(EngineNotFoundError):
            list(engine[0].stream(name))
    assert engine.call("touched") == [0]
    assert engine.call("method") == engine.call("class_method") == engine.call("static_method") == ["fine"]
