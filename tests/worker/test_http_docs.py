"""docs/http.md names the routes and members that there are."""

from __future__ import annotations

import re
from collections.abc import Iterator

import msgspec

from rolecall.protocol.worker_methods import METHODS, HttpRoute, WorkerMethod
from tests.support.checkout import ROOT

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
    if method.request is None or route.form in ("tensor", "upload"):
        return set()
    fields = {field.name for field in msgspec.structs.fields(method.request)}
    return fields | set(method.arguments or ()) | ({"stream"} if route.form == "call" else set())


def test_the_example_line_of_the_page_is_the_readmes() -> None:
    """Which another test runs."""
    (line,) = re.findall(r"^curl .*$", PAGE.read_text(), re.MULTILINE)
    assert line in (PAGE.parents[1] / "README.md").read_text()
