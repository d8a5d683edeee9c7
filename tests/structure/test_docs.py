"""The documents say what the code says."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.support.checkout import ROOT, SOURCES
from tests.support.error_examples import examples

DOCS = ROOT / "docs"
SOURCE = SOURCES / "rolecall"
TREES = [ast.parse(path.read_text()) for path in SOURCE.rglob("*.py")]


def sections(text: str) -> dict[str, str]:
    """The text under each heading that is the name of an error."""
    parts = re.split(r"^#+ (\w+)$", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def error_classes() -> dict[str, set[str]]:
    """The bases of each class of the source that derives from RolecallError, by its name."""
    nodes = [node for tree in TREES for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    bases = {node.name: {base.id for base in node.bases if isinstance(base, ast.Name)} for node in nodes}
    found: dict[str, set[str]] = {"RolecallError": set()}
    while new := {name: of for name, of in bases.items() if name not in found and of & found.keys()}:
        found |= new
    return found


def test_every_error_has_its_section() -> None:
    """Those of the command line, too; and no section is about an error that no longer exists."""
    named = {name for name in sections((DOCS / "errors.md").read_text()) if name.endswith("Error")}
    assert named == error_classes().keys()


def test_every_error_is_raised_somewhere() -> None:
    """Each class is constructed somewhere in the source, but for those that are a base of others."""
    errors = error_classes()
    calls = [node.func for tree in TREES for node in ast.walk(tree) if isinstance(node, ast.Call)]
    made = {func.id if isinstance(func, ast.Name) else getattr(func, "attr", "") for func in calls}
    bases = {base for of in errors.values() for base in of}
    assert {name for name in errors if name not in made | bases} == set()


@pytest.mark.slow("brings every error about")
def test_the_messages_shown_are_those_that_users_see(tmp_path: Path) -> None:
    """Every example is brought about, and its first line stands under the error's heading."""
    shown = sections((DOCS / "errors.md").read_text())
    seen = {name: message.splitlines()[0] for name, message in examples(tmp_path).items()}
    assert {name: line for name, line in seen.items() if line not in shown[name].splitlines()} == {}


def test_every_attack_has_its_test() -> None:
    """The tests that docs/attacks.md names exist, and each row names one."""
    rows = [row for row in (DOCS / "attacks.md").read_text().splitlines() if row.startswith("| ")]
    rows = [row for row in rows if not row.startswith("| attack |")]
    named = [re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", row) for row in rows]
    assert [row for row, tests in zip(rows, named, strict=True) if not tests] == []
    tests = {test for found in named for test in found}
    assert {(file, name) for file, name in tests if f"def {name}(" not in (ROOT / file).read_text()} == set()
