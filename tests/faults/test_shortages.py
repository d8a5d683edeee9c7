"""Limits of the system are told as such, with what to do, and nothing is left."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.support.checkout import ROOT

MANY = """
import sys
from rolecall import scheduler
with scheduler("local", preload=[], experiment="e", trial="t", fileroot=sys.argv[1]) as s:
    try:
        s.start("actor", 40, cpu=0.01, mem=0.01)
    except Exception as e:
        print(type(e).__name__, e, flush=True)
    print(len(s.start("few", 2, cpu=0.01, mem=0.01)), flush=True)
"""


def test_too_few_open_files_are_told_with_the_limit_to_raise(tmp_path: Path) -> None:
    """Of a start that needs more than the guard may open; a smaller one works afterwards."""
    command = f"ulimit -n 64 && exec {sys.executable} -c '{MANY}' {tmp_path}"
    ran = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=ROOT, timeout=120)
    *told, few = ran.stdout.splitlines()
    assert "Too many open files" in told[0] and "`ulimit -n`" in "".join(told), ran
    assert few == "2"
