"""What this host has: versions of Python and packages, py-spy and whether it may attach, devices."""

from __future__ import annotations

import importlib.metadata as metadata
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path

from rolecall.cli.checks import judged
from rolecall.guard.probe import py_spy
from rolecall.guard.proc import read_text
from rolecall.placement.outside import Finding, Severity, error, info, ok, warning
from rolecall.protocol.devices import VARIABLES, parse_visible

VERSIONS, PY_SPY, DEVICES = "versions", "py-spy", "devices"
OLDEST_PYTHON = (3, 11)
# Oldest versions that work, for installations whose metadata is missing (a source tree on PYTHONPATH).
NEEDED = {"h11": "0.16", "msgspec": "0.20", "psutil": "6", "rich": "13.7", "typer": "0.15"}
USABLE = {"torch": "2.4", "numpy": "1.26", "ray": "2.60", "transformers": "4.46", "pydantic": "2.9", "vllm": "0"}
EXTRAS = {"torch": "torch", "numpy": "torch", "ray": "ray", "transformers": "rl"}
PTRACE_SCOPE = Path("/proc/sys/kernel/yama/ptrace_scope")
TIMEOUT_S = 20.0


def check_devices(folder: Path = Path("/dev"), env: Mapping[str, str] = os.environ) -> Iterator[Finding]:
    """Device files, then the variables."""
    found = {kind: sorted(folder.glob(f"{kind}[0-9]*")) for kind in VARIABLES}
    for kind, files in found.items():
        if files:
            yield _files(kind, files)
    if not any(found.values()):
        yield info(DEVICES, "no accelerator was found; roles with gpu=0 work")
    for kind, name in VARIABLES.items():
        if name in env:
            count = len(found[kind])
            beyond = [device for device in parse_visible(env[name]) if device.isdigit() and int(device) >= count]
            more = f" names device(s) {', '.join(beyond)}, but there are {count}" if beyond else ""
            advice = "workers would not find these devices; correct the variable"
            yield judged(DEVICES, f"{name}={env[name]}{more}", bool(beyond), advice, f"unset {name}")


def check_versions() -> Iterator[Finding]:
    """Python, required packages, optional packages."""
    seen = f"Python {platform.python_version()} at {sys.executable}"
    severity = Severity.ERROR if sys.version_info < OLDEST_PYTHON else Severity.OK
    yield judged(VERSIONS, seen, severity, "use Python 3.11 or newer", "python3.11 -m venv .venv")
    for name, oldest in NEEDED.items():
        wanted = _pip(f"{name}>={oldest}")
        yield _package(name, oldest, error, error(VERSIONS, f"{name} is not installed", "install it", wanted))
    for name, oldest in USABLE.items():
        extra = EXTRAS.get(name)
        advice = f"needed only with the extra {extra!r}" if extra else "optional"
        absent = info(VERSIONS, f"{name} is not installed", advice, _pip(f"rolecall[{extra}]" if extra else name))
        yield _package(name, oldest, warning, absent)
    uvloop = installed("uvloop")
    seen = f"uvloop {uvloop}" if uvloop else "uvloop is not installed; asyncio is used"
    missing = uvloop is None and platform.python_implementation() == "CPython"
    yield judged("uvloop", seen, missing, "calls are slower without it", _pip("uvloop"))
    compiled = find_spec("rolecall.transport.codec._scan") is not None
    seen = f"rolecall's C extension {'is compiled' if compiled else 'is not compiled; Python does its work'}"
    advice = "calls are slower without it; install a C compiler, then rolecall again"
    yield judged(VERSIONS, seen, not compiled, advice)


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
        return judge(VERSIONS, f"{name} {version} is older than {oldest}", "upgrade it", _pip(f"{name}>={oldest}"))
    return ok(VERSIONS, f"{name} {version}") if version is not None else absent


def _pip(requirement: str) -> str:
    return shlex.join([sys.executable, "-m", "pip", "install", requirement])


def check_py_spy() -> Iterator[Finding]:
    """Attaches to this process, since the settings alone do not tell whether the kernel allows it."""
    argv = py_spy(os.getpid())
    if not argv:
        pip = shlex.join([sys.executable, "-m", "pip", "install", "py-spy"])
        yield warning(PY_SPY, "py-spy is not installed", "without it the stacks of a stuck worker cannot be read", pip)
        return
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as e:
        yield warning(PY_SPY, f"{argv[0]} does not work: {e}", "reinstall it")
        return
    yield ok(PY_SPY, f"{argv[0]} may attach") if done.returncode == 0 else _refused(done.stderr)


def _refused(stderr: str) -> Finding:
    reason = next(iter(stderr.strip().splitlines()), "no reason given")
    scope = read_text(PTRACE_SCOPE).strip() or "0"
    advice, command = "in a container add the capability: --cap-add SYS_PTRACE", ""
    if scope != "0":
        advice = f"kernel.yama.ptrace_scope is {scope}; 0 allows a user's processes to trace each other"
        command = "sudo sysctl kernel.yama.ptrace_scope=0"
    return warning(PY_SPY, f"py-spy may not attach: {reason}", advice, command)


def _files(kind: str, files: list[Path]) -> Finding:
    closed = [path for path in files if not os.access(path, os.R_OK | os.W_OK)]
    if closed:
        seen = f"{', '.join(map(str, closed))} may not be opened by this user"
        advice = "join the group that may, or start the container with the devices"
        return error(DEVICES, seen, advice, f"ls -l {closed[0]}")
    return ok(DEVICES, f"{len(files)} {kind} device(s): {', '.join(path.name for path in files)}")
