"""Runs a story of `short_controller.py` as a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys

from tests.support.checkout import PYTHONPATH, ROOT

PROGRAM = [sys.executable, "-m", "tests.faults.short_controller"]


def ran(command: list[str], **env: str) -> subprocess.CompletedProcess[str]:
    """How a command ended, and what it printed."""
    env = {**os.environ, "PYTHONPATH": PYTHONPATH, **env}
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=env, timeout=120)
