"""Runs a story of `short_controller.py` as a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys

from tests.support.checkout import PYTHONPATH, ROOT

PROGRAM = [sys.executable, "-m", "tests.faults.short_controller"]

OTHER_USER = 54321
# Root becomes it. It may reach the interpreter of these tests, which may be in a home directory, and change its user.
CAPABILITIES = "+dac_read_search,+setuid"
AS_OTHER = [
    *("setpriv", f"--reuid={OTHER_USER}", f"--regid={OTHER_USER}", "--clear-groups"),
    *(f"--inh-caps={CAPABILITIES}", f"--ambient-caps={CAPABILITIES}"),
]


def ran(command: list[str], **env: str) -> subprocess.CompletedProcess[str]:
    """How a command ended, and what it printed."""
    env = {**os.environ, "PYTHONPATH": PYTHONPATH, **env}
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=env, timeout=120)
