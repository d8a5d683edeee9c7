"""Versions of Python, of the required packages and of the optional ones."""

from __future__ import annotations

import importlib.metadata as metadata
import platform
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec

from rolecall.cli.checks import judged
from rolecall.placement.outside import Finding, Severity, error, info, ok, warning

CHECK = "versions"
OLDEST_PYTHON = (3, 11)
# Oldest versions that work, for installations whose metadata is missing (a source tree on PYTHONPATH).
NEEDED = {"h11": "0.16", "msgspec": "0.20", "psutil": "6", "rich": "13.7", "typer": "0.15"}
USABLE = {"torch": "2.4", "numpy": "1.26", "ray": "2.60", "transformers": "4.46", "pydantic": "2.9", "vllm": "0"}
EXTRAS = {"torch": "torch", "numpy": "torch", "ray": "ray", "transformers": "rl"}


def check_versions() -> Iterator[Finding]:
    """Python, required packages, optional packages."""
    seen = f"Python {platform.python_version()} at {sys.executable}"
    severity = Severity.ERROR if sys.version_info < OLDEST_PYTHON else Severity.OK
    yield judged(CHECK, seen, severity, "use Python 3.11 or newer", "python3.11 -m venv .venv")
    for name, oldest in NEEDED.items():
        wanted = _pip(f"{name}>={oldest}")
        yield _package(name, oldest, error, error(CHECK, f"{name} is not installed", "install it", wanted))
    for name, oldest in USABLE.items():
        extra = EXTRAS.get(name)
        advice = f"needed only with the extra {extra!r}" if extra else "optional"
        absent = info(CHECK, f"{name} is not installed", advice, _pip(f"rolecall[{extra}]" if extra else name))
        yield _package(name, oldest, warning, absent)
    uvloop = installed("uvloop")
    seen = f"uvloop {uvloop}" if uvloop else "uvloop is not installed; asyncio is used"
    missing = uvloop is None and platform.python_implementation() == "CPython"
    yield judged("uvloop", seen, missing, "calls are slower without it", _pip("uvloop"))
    compiled = find_spec("rolecall.transport.codec._scan") is not None
    seen = f"rolecall's C extension {'is compiled' if compiled else 'is not compiled; Python does its work'}"
    advice = "calls are slower without it; install a C compiler, then rolecall again"
    yield judged(CHECK, seen, not compiled, advice)


def installed(package: str) -> str | None:
    """The version of a package, without importing it."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def parse(version: str) -> tuple[int, ...]:
    """The leading numbers: `2.4.0+cpu` is (2, 4, 0)."""
    match = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in match.group().split(".")) if match else ()


def older(version: str, oldest: str) -> bool:
    return parse(version) < parse(oldest)


def _package(name: str, oldest: str, judge: Callable[..., Finding], absent: Finding) -> Finding:
    version = installed(name)
    if version is not None and older(version, oldest):
        return judge(CHECK, f"{name} {version} is older than {oldest}", "upgrade it", _pip(f"{name}>={oldest}"))
    return ok(CHECK, f"{name} {version}") if version is not None else absent


def _pip(requirement: str) -> str:
    return shlex.join([sys.executable, "-m", "pip", "install", requirement])
