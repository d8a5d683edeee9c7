"""Who may import whom, as data. An import that points upward fails here, by file and line."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support.checkout import ROOT, SOURCES

SOURCE = SOURCES / "rolecall"

EVERYTHING = ("*",)

# What a part may import beside itself. An entry names a package, or one module of it.
MAY_IMPORT: dict[str, tuple[str, ...]] = {
    "__init__": EVERYTHING,  # the front door only re-exports
    "errors": (),
    "types": ("errors",),
    "protocol": ("errors", "types"),
    "transport": ("protocol", "errors", "types"),
    "tensors": ("transport", "protocol", "errors", "types"),
    "guard": ("transport", "protocol", "errors", "types"),
    "worker": ("tensors", "transport", "protocol", "errors", "types"),
    # A placement shares with the guard how processes are named and swept.
    "placement": ("guard.proc", "guard.sweep", "transport", "protocol", "errors", "types"),
    # A scheduler is its run's home of tensors.
    "scheduler": (
        "placement",
        "tensors",
        "guard.claims",
        "guard.proc",
        "guard.sweep",
        "transport",
        "protocol",
        "errors",
        "types",
    ),
    "proxy": ("worker", "protocol", "errors", "types"),
    # What stands beside the package: a user of its front door.
    "areal": ("rolecall", "errors"),
    "rl": EVERYTHING,
    "demo": EVERYTHING,
    "cli": EVERYTHING,
    "testing": EVERYTHING,
}

# Backends share what stands in the base and know nothing of each other.
STRANGERS = [("placement.local", "placement.slurm", "placement.ray")]

BASE = {"h11", "msgspec", "psutil", "rich", "typer", "uvloop"}

# Third parties of the extras: loaded inside the function that needs them, under TYPE_CHECKING, or in a try statement.
OPTIONAL = {
    "PIL",
    "areal",
    "cloudpickle",
    "matplotlib",
    "numpy",
    "py_spy",
    "pydantic",
    "ray",
    "torch",
    "transformers",
}

# Parts that are nothing without their extra and may import it at the top.
NEEDS_ITS_EXTRA = {"areal", "demo", "rl"}

# A command loads what it runs and no more, else `rolecall --help` waits for torch.
LOADS_LATE = {"cli"}


class Import(NamedTuple):
    """One imported module, with where and how it is imported."""

    line: int
    module: str
    deferred: bool  # inside a function
    guarded: bool  # under TYPE_CHECKING or in a try statement


def imports_of(tree: ast.AST, package: str) -> Iterator[Import]:
    """Every import of a module; `package` is the dotted package that relative imports start from."""

    def walk(node: ast.AST, deferred: bool, guarded: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                for alias in child.names:
                    yield Import(child.lineno, alias.name, deferred, guarded)
            elif isinstance(child, ast.ImportFrom):
                for name in targets(child, package):
                    yield Import(child.lineno, name, deferred, guarded)
            else:
                function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
                shield = isinstance(child, ast.Try) or is_type_checking(child)
                yield from walk(child, deferred or function, guarded or shield)

    return walk(tree, False, False)


def targets(node: ast.ImportFrom, package: str) -> list[str]:
    """Modules that a `from` import reaches; `from rolecall import transport` reaches rolecall.transport."""
    base = node.module or ""
    if node.level:
        above = package.split(".")[: len(package.split(".")) - node.level + 1]
        base = ".".join([*above, *([node.module] if node.module else [])])
    if not base.startswith("rolecall"):
        return [base]
    names = (f"{base}.{alias.name}" for alias in node.names)
    return list(dict.fromkeys(name if is_module(name) else base for name in names))


def is_module(dotted: str) -> bool:
    path = SOURCE.parent / Path(*dotted.split("."))
    return path.is_dir() or path.with_suffix(".py").is_file()


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def within(module: str, names: tuple[str, ...]) -> bool:
    """Whether a module is one of these packages or lies in one."""
    return names == EVERYTHING or any(module == name or module.startswith(f"{name}.") for name in names)


def complaints(path: Path) -> Iterator[str]:
    """What a file imports that it must not."""
    relative = path.relative_to(SOURCE.parent)
    dotted = ".".join(relative.with_suffix("").parts)
    package = dotted.rpartition(".")[0]
    own = dotted.removeprefix("rolecall.")
    part = own.partition(".")[0]
    if part not in MAY_IMPORT:
        yield f"{relative}: '{part}' has no row in MAY_IMPORT"
        return
    for found in imports_of(ast.parse(path.read_text()), package):
        reason = objection(own, part, found)
        if reason:
            yield f"{relative}:{found.line}: imports {found.module}: {reason}"


def objection(own: str, part: str, found: Import) -> str | None:
    """Why a file must not have this import, or None."""
    top = found.module.partition(".")[0]
    if top == "rolecall":
        return own_objection(own, part, found)
    if top in sys.stdlib_module_names:
        return "a deferred import is for optional third parties" if found.deferred and part not in LOADS_LATE else None
    if top not in BASE | OPTIONAL:
        return "a third party that neither BASE nor OPTIONAL knows"
    loose = found.deferred or found.guarded or part in NEEDS_ITS_EXTRA
    return None if top in BASE or loose else "an extra imported at the top breaks installations without it"


def own_objection(own: str, part: str, found: Import) -> str | None:
    target = found.module.removeprefix("rolecall").removeprefix(".")
    if found.deferred and part not in LOADS_LATE:
        return "a deferred import of our own hides a dependency"
    if not target:
        at_the_door = part == "__init__" or "rolecall" in MAY_IMPORT[part] or MAY_IMPORT[part] == EVERYTHING
        return None if at_the_door else "below the front door, name the module"
    if not within(target, (part, *MAY_IMPORT[part])) and MAY_IMPORT[part] != EVERYTHING:
        return f"'{part}' may import {', '.join(MAY_IMPORT[part]) or 'nothing'}"
    for group in STRANGERS:
        mine = [name for name in group if own.startswith(name)]
        if mine and any(target.startswith(name) for name in group if name not in mine):
            return "backends never import each other"
    return None


@pytest.mark.parametrize("part", sorted(MAY_IMPORT))
def test_no_import_points_upward(part: str) -> None:
    """A part imports only what the table grants it, and defers only optional third parties."""
    files = [*SOURCE.glob(f"{part}.py"), *(SOURCE / part).rglob("*.py")]
    assert not [text for path in sorted(files) for text in complaints(path)]


def test_every_part_is_in_the_table() -> None:
    """A new package gets a row before it gets an import."""
    parts = {path.stem for path in SOURCE.iterdir() if path.suffix == ".py" or (path.is_dir() and any(path.iterdir()))}
    assert parts - {"__pycache__"} <= set(MAY_IMPORT)


@pytest.mark.parametrize(
    ("own", "text", "allowed"),
    [
        ("transport.link", "from rolecall.errors import RPCError", True),
        ("transport.link", "from rolecall.worker import host", False),
        ("transport.link", "from ..worker import host", False),
        ("transport.link", "from .codec import encode", True),
        ("scheduler.roles", "from rolecall.scheduler.calls import CallOptions", True),
        ("transport.link", "from rolecall.placement.local import LocalPlacement", False),
        ("placement.ray.groups", "from rolecall.placement.slurm.script import x", False),
        ("placement.local", "from rolecall.scheduler.scheduler import Scheduler", False),
        ("tensors.handle", "import torch", False),
        ("tensors.handle", "def f():\n    import torch", True),
        ("tensors.handle", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch", True),
        ("guard.main", "def f():\n    import json", False),
        ("guard.main", "import requests", False),
        ("demo.train", "import torch", True),
        ("areal.host", "import rolecall", True),
        ("areal.host", "from rolecall.transport import codec", False),
        ("cli.main", "def f():\n    from rolecall.demo import run", True),
    ],
)
def test_the_check_itself_sees_what_is_forbidden(own: str, text: str, allowed: bool) -> None:
    """Good imports pass and bad ones do not, in every spelling."""
    package = f"rolecall.{own}".rpartition(".")[0]
    objections = [objection(own, own.partition(".")[0], found) for found in imports_of(ast.parse(text), package)]
    assert allowed is not any(objections)


def test_the_layers_shown_are_those_that_are_enforced() -> None:
    """The table of layers in docs/design.md equals MAY_IMPORT."""
    section = (ROOT / "docs" / "design.md").read_text().partition("\n## Layers\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `([\w.]+)` \| [^|]* \| ([^|]*) \|$", section, re.MULTILINE)
    said = {part: tuple(re.findall(r"`([\w.]+)`", allowed)) for part, allowed in rows}
    limited = {part: allowed for part, allowed in MAY_IMPORT.items() if allowed != ("*",)}
    assert said == limited
