"""A backend is a placement: it repeats nothing of another one, and it is small beside what all of them share."""

from __future__ import annotations

import ast
import io
import itertools
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.checkout import ROOT, SOURCES

PLACEMENT = SOURCES / "rolecall" / "placement"
BACKENDS = {
    "local": ["local.py"],
    "slurm": sorted(f"slurm/{path.name}" for path in PLACEMENT.glob("slurm/*.py")),
    "ray": sorted(f"ray/{path.name}" for path in PLACEMENT.glob("ray/*.py")),
}
# Pure: values come in, values go out.
PLANNERS = {
    "slurm/script.py",
    "slurm/packing.py",
    "slurm/options.py",
    "slurm/states.py",
    "ray/groups.py",
    "ray/messages.py",
}
BLOCK = 6
LINES = 500
TOY_LINES = 80


def statements(path: Path) -> dict[int, str]:
    """A file's lines by number, without indentation, comments, docstrings, imports and lines of punctuation alone."""
    source = path.read_text()
    lines = {number: line.strip() for number, line in enumerate(source.splitlines(), 1)}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            lines[token.start[0]] = lines[token.start[0]].removesuffix(token.string).rstrip()
    for first, last in passed_over(ast.parse(source)):
        for number in range(first, last + 1):
            lines[number] = ""
    return {number: line for number, line in lines.items() if any(c.isalnum() for c in line)}


def passed_over(tree: ast.Module) -> Iterator[tuple[int, int]]:
    """Where imports and docstrings stand."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom) or (isinstance(node, ast.Expr) and is_text(node.value)):
            yield node.lineno, node.end_lineno or node.lineno


def is_text(value: ast.expr) -> bool:
    return isinstance(value, ast.Constant) and isinstance(value.value, str)


def blocks(name: str) -> dict[tuple[str, ...], str]:
    """Every run of so many lines of a file, and where it begins."""
    numbered = list(statements(PLACEMENT / name).items())
    runs = (numbered[i : i + BLOCK] for i in range(len(numbered) - BLOCK + 1))
    return {tuple(line for _, line in run): f"{name}:{run[0][0]}" for run in runs}


@pytest.mark.parametrize(("one", "other"), list(itertools.combinations(BACKENDS, 2)))
def test_no_block_of_lines_stands_in_two_backends(one: str, other: str) -> None:
    """What two worlds share belongs to the base, or to what clusters share."""
    for mine, theirs in itertools.product(BACKENDS[one], BACKENDS[other]):
        found, again = blocks(mine), blocks(theirs)
        assert {found[block]: again[block] for block in found.keys() & again.keys()} == {}


@pytest.mark.parametrize("shared", ["../scheduler/scheduler.py", "allocations.py", "host_placement.py", "base.py"])
def test_no_backend_repeats_what_it_inherits(shared: str) -> None:
    """No block of code of the shared placement modules stands again in a backend."""
    above = blocks(shared)
    for name in itertools.chain(*BACKENDS.values()):
        found = blocks(name)
        assert {found[block]: above[block] for block in found.keys() & above.keys()} == {}


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_backend_is_small_without_its_planner(backend: str) -> None:
    """Counted in lines that say something: comments, docstrings, imports and blank lines are free."""
    names = [name for name in BACKENDS[backend] if name not in PLANNERS]
    counted = {name: len(statements(PLACEMENT / name)) for name in names}
    assert sum(counted.values()) <= LINES, counted


def test_every_planner_belongs_to_a_backend() -> None:
    """The list of pure planners names only files of the backends."""
    assert set(itertools.chain(*BACKENDS.values())) >= PLANNERS


def test_a_toy_backend_is_a_folder_of_less_than_eighty_lines() -> None:
    """All that it needs stands in its folder: no other file of the package or of the suites knows its name."""
    toy = ROOT / "tests" / "placement" / "toy"
    lines = {path.name: len(path.read_text().splitlines()) for path in toy.glob("[_pu]*.py")}
    assert sum(lines.values()) < TOY_LINES, lines
    elsewhere = [*SOURCES.rglob("*.py"), *(ROOT / "tests").rglob("*.py")]
    knowing = [path for path in elsewhere if re.search(r"placement.toy|ToyPlacement", path.read_text())]
    assert {path for path in knowing if path != Path(__file__)} == set(toy.glob("[put]*.py"))


def test_lines_that_are_shared_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever their indentation, and with comments between them."""
    six = [f"call_{i}(x)" for i in range(BLOCK)]
    (tmp_path / "a.py").write_text("import os\n" + "\n".join(six))
    (tmp_path / "b.py").write_text("def f(x):\n    # why\n" + "\n".join(f"    {line}  # {line}" for line in six))
    monkeypatch.setitem(globals(), "PLACEMENT", tmp_path)
    assert blocks("a.py").keys() & blocks("b.py").keys() == {tuple(six)}
