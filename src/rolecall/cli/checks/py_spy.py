"""Whether stacks can be read from outside: py-spy is installed and the kernel lets it attach."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from rolecall.guard.probe import py_spy
from rolecall.placement.outside import Finding, ok, warning

CHECK = "py-spy"
PTRACE_SCOPE = Path("/proc/sys/kernel/yama/ptrace_scope")
TIMEOUT_S = 20.0


def check_py_spy() -> Iterator[Finding]:
    """Attaches to this process, since the settings alone do not tell whether the kernel allows it."""
    argv = py_spy(os.getpid())
    if not argv:
        pip = shlex.join([sys.executable, "-m", "pip", "install", "py-spy"])
        yield warning(CHECK, "py-spy is not installed", "without it the stacks of a stuck worker cannot be read", pip)
        return
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as e:
        yield warning(CHECK, f"{argv[0]} does not work: {e}", "reinstall it")
        return
    yield ok(CHECK, f"{argv[0]} may attach") if done.returncode == 0 else _refused(done.stderr)


def _refused(stderr: str) -> Finding:
    reason = next(iter(stderr.strip().splitlines()), "no reason given")
    scope = PTRACE_SCOPE.read_text().strip() if PTRACE_SCOPE.exists() else "0"
    advice, command = "in a container add the capability: --cap-add SYS_PTRACE", ""
    if scope != "0":
        advice = f"kernel.yama.ptrace_scope is {scope}; 0 allows a user's processes to trace each other"
        command = "sudo sysctl kernel.yama.ptrace_scope=0"
    return warning(CHECK, f"py-spy may not attach: {reason}", advice, command)
