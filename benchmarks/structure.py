"""What the source tree looks like in numbers: files, lines, untyped dicts, touches of others' privates, import circles.

python benchmarks/structure.py [ROOT] [--json FILE]

It reads text and imports nothing of it, so any revision can be measured: `git worktree add ../old REVISION`, then name
that folder.
"""

from __future__ import annotations

import argparse
import ast
import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeGuard

SHORT = 50
LONG = 500
UNTYPED = "dict[str, Any]"
PUBLIC = {"_replace", "_asdict", "_make", "_fields", "_exit", "_current_frames"}  # documented by the standard library


def touches(tree: ast.AST) -> Iterator[str]:
    """Attributes with one leading underscore that belong to another object than `self`, `cls` or `super()`."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute) or not node.attr.startswith("_") or node.attr.startswith("__"):
            continue
        if node.attr not in PUBLIC and ast.unparse(node.value) not in ("self", "cls", "super()"):
            yield node.attr


def imports(tree: ast.Module, modules: set[str]) -> set[str]:
    """Modules of ours that a module names in an import, wherever that stands: under TYPE_CHECKING too."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {name if name in modules else node.module for name in names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found & modules


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Groups of nodes that reach each other, each of two or more (Tarjan's algorithm)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for after in graph[node]:
            if after not in index:
                visit(after)
                low[node] = min(low[node], low[after])
            elif after in stack:
                low[node] = min(low[node], index[after])
        if low[node] == index[node]:
            at = stack.index(node)
            group, stack[at:] = stack[at:], []
            if len(group) > 1:
                found.append(sorted(group))

    for node in sorted(graph):
        if node not in index:
            visit(node)
    return found


def files_of(folder: Path) -> dict[Path, ast.Module]:
    return {path: ast.parse(path.read_text()) for path in sorted(folder.rglob("*.py"))}


def by_package(trees: dict[Path, ast.Module], source: Path) -> tuple[dict[str, set[str]], dict[str, set[str]]]:
    """Imports between modules, and between the packages directly below the root."""
    names = {".".join(path.relative_to(source.parent).with_suffix("").parts): path for path in trees}
    names = {name.removesuffix(".__init__"): path for name, path in names.items()}
    graph = {name: imports(trees[path], set(names)) - {name} for name, path in names.items()}
    packages: dict[str, set[str]] = defaultdict(set)
    for name, needs in graph.items():
        mine = _package(name)
        packages[mine] |= {_package(other) for other in needs if _package(other) != mine}
    return graph, {name: needs & packages.keys() for name, needs in packages.items()}


def _package(module: str) -> str:
    return module.split(".")[1] if "." in module else module


def measure(root: Path) -> dict[str, Any]:
    source, tests = root / "src" / "rolecall", root / "tests"
    ours, theirs = files_of(source), files_of(tests)
    modules, packages = by_package(ours, source)
    texts = [path.read_text() for path in ours]
    lengths = {path: len(path.read_text().splitlines()) for path in ours}
    functions = [n for tree in theirs.values() for n in ast.walk(tree) if _is_test(n)]
    return {
        "source_files": len(ours),
        "source_lines": sum(lengths.values()),
        "source_files_under_50_lines": sum(0 < n < SHORT for p, n in lengths.items() if p.name[:2] != "__"),
        "source_files_over_500_lines": sum(n > LONG for n in lengths.values()),
        "test_files": len(theirs),
        "test_lines": sum(len(path.read_text().splitlines()) for path in theirs),
        "test_functions_without_docstring": sum(ast.get_docstring(f) is None for f in functions),
        "untyped_dicts": sum(text.count(UNTYPED) for text in texts),
        "touches_of_privates": sum(len(list(touches(tree))) for tree in ours.values()),
        "touches_of_privates_in_tests": sum(len(list(touches(tree))) for tree in theirs.values()),
        "import_circles_of_modules": len(circles(modules)),
        "import_circles_of_packages": len(circles(packages)),
    }


def _is_test(node: ast.AST) -> TypeGuard[ast.FunctionDef | ast.AsyncFunctionDef]:
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("root", nargs="?", type=Path, default=Path(__file__).parents[1], help="a checkout")
    parser.add_argument("--json", type=Path, help="write the numbers to this file too")
    options = parser.parse_args()
    found = measure(options.root)
    for name, number in found.items():
        print(f"{name:36} {number:>8}")
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
