"""What the README and docs/patterns.md show runs, as it stands there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.checkout import ROOT, SOURCES

PAGES = "".join((ROOT / page).read_text() for page in ("README.md", "docs/patterns.md"))
PROGRAMS = re.findall(r"```python\n(.*?)```", PAGES, re.DOTALL)
EXPECTED = [
    ["[1.5, 1.5]", "6.0"],
    ["[3, 7]", "3", "[3, 3]", "3", "['t0', 't1', 't2']"],
    ["100 1"],
    ["True", "set()"],
    ["[2.0, 2.0]"],
    ["[6.0, 6.0]", "tensor([0, 1, 2])"],
    ["200", "200"],
    ["2 3 1"],
    ["2", "6", "10"],
    ["100", "5"],
]


def test_every_program_of_the_pages_is_known_here() -> None:
    """Each program has an expected output above."""
    assert len(PROGRAMS) == len(EXPECTED)


@pytest.mark.slow("the page's programs, as a user would run them")
@pytest.mark.parametrize("index", range(len(EXPECTED)))
def test_a_program_runs_and_prints_what_it_says(index: int, tmp_path: Path) -> None:
    """Each program runs as it stands there, with the output that it shows."""
    script = tmp_path / "program.py"
    script.write_text(PROGRAMS[index])
    env = {**os.environ, "HOME": str(tmp_path), "PYTHONPATH": os.pathsep.join([str(SOURCES), *sys.path])}
    done = subprocess.run([sys.executable, str(script)], env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stdout.splitlines() if line] == EXPECTED[index]
