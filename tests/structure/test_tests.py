"""The tests themselves: each states its promise, and none is built on another."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from tests.support.checkout import ROOT

FILES = sorted((ROOT / "tests").rglob("test_*.py"))
MODULES = {".".join(path.relative_to(ROOT).with_suffix("").parts) for path in FILES}


def name(path: Path) -> str:
    return str(path.relative_to(ROOT / "tests"))


def functions_of(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
            yield node


def imported_by(path: Path) -> Iterator[str]:
    """The modules that a file names in its imports, those that `from` takes out of a package as well."""
    package = ".".join(path.relative_to(ROOT).parent.parts)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(part for part in (package if node.level else "", node.module) if part)
            yield from (base, *(f"{base}.{alias.name}" for alias in node.names))


def test_every_test_states_its_promise() -> None:
    """Each test function has a docstring."""
    bare = {name(path): [f.name for f in functions_of(path) if not ast.get_docstring(f)] for path in FILES}
    assert {file: names for file, names in bare.items() if names} == {}


def test_no_test_is_imported() -> None:
    """What tests share stands in a module that is no test and no conftest."""
    found = {name(path): set(imported_by(path)) for path in (ROOT / "tests").rglob("*.py")}
    wrong = {file: {m for m in modules if m in MODULES or m.endswith(".conftest")} for file, modules in found.items()}
    assert {file: modules for file, modules in wrong.items() if modules} == {}
