"""docs/http.md names the routes and members that there are."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from rolecall.protocol.worker_methods import METHODS, HttpRoute, WorkerMethod
from tests.support.checkout import ROOT, SOURCES

PAGE = ROOT / "docs" / "http.md"
ROW = re.compile(r"^\| `([A-Z]+) (/[^`]*)` \|([^|]*)\|", re.MULTILINE)


def test_every_route_is_documented_with_what_its_request_takes() -> None:
    """Method, path and the members of the body; nothing else is documented."""
    shown = {(verb, path): set(re.findall(r"`(\w+)`", rest)) for verb, path, rest in ROW.findall(PAGE.read_text())}
    assert shown == {(route.verb, route.path): members(method, route) for method, route in routes()}


def routes() -> Iterator[tuple[WorkerMethod, HttpRoute]]:
    return ((method, route) for method in METHODS.values() for route in method.routes)


def members(method: WorkerMethod, route: HttpRoute) -> set[str]:
    """What the JSON body of a request may hold."""
    if method.request is object or route.form in ("tensor", "upload"):
        return set()
    fields = {field.name for field in msgspec.structs.fields(method.request)}
    return fields | set(method.arguments or ()) | ({"stream"} if route.form == "call" else set())


def test_the_example_line_of_the_page_is_the_readmes() -> None:
    """Which another test runs."""
    (line,) = re.findall(r"^curl .*$", PAGE.read_text(), re.MULTILINE)
    assert line in (PAGE.parents[1] / "README.md").read_text()


@pytest.mark.slow("starts a run")
def test_the_server_of_the_page_runs_as_it_stands_there(tmp_path: Path) -> None:
    """The module and the program that starts it, with the output that it shows."""
    module, program = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (tmp_path / "proxy.py").write_text(module)
    (tmp_path / "program.py").write_text(program)
    env = {**os.environ, "HOME": str(tmp_path), "PYTHONPATH": os.pathsep.join([str(SOURCES), *sys.path])}
    run = [sys.executable, "program.py"]
    done = subprocess.run(run, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines() == ["[7, 7]", "proxy/0 has 7", "proxy/1 has 7"], done.stderr
