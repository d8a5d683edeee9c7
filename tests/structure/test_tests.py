"""The tests themselves: each states its promise, and none is built on another."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

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


@pytest.mark.parametrize("path", FILES, ids=name)
def test_every_test_states_its_promise(path: Path) -> None:
    """Each test function has a docstring."""
    assert [test.name for test in functions_of(path) if not ast.get_docstring(test)] == []


@pytest.mark.parametrize("path", sorted((ROOT / "tests").rglob("*.py")), ids=name)
def test_no_test_is_imported(path: Path) -> None:
    """What tests share stands in a module that is no test and no conftest."""
    found = set(imported_by(path))
    assert not found & MODULES
    assert not [module for module in found if module.split(".")[-1] == "conftest"]
