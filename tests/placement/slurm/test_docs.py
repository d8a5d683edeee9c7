"""What docs/slurm.md shows runs, as it stands there, and its tables name what there is."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from rolecall.placement.slurm.options import SlurmOptions
from tests.support.checkout import ROOT, SOURCES
from tests.support.slurm_cluster import SlurmCluster

TEXT = (ROOT / "docs" / "slurm.md").read_text()
PROGRAMS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


@pytest.mark.slow("the page's programs, as a user would run them")
@pytest.mark.parametrize(("index", "printed"), [(0, "[1.5, 1.5]\n"), (1, "actor\n")])
def test_a_program_of_the_page_runs(index: int, printed: str, cluster: SlurmCluster, tmp_path: Path) -> None:
    script = tmp_path / "program.py"
    script.write_text(PROGRAMS[index])
    env = {**os.environ, "HOME": str(tmp_path), "PYTHONPATH": str(SOURCES)}
    done = subprocess.run([sys.executable, script], env=env, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, printed), done.stderr
    assert cluster.jobs() == {}


def test_every_program_of_the_page_is_run() -> None:
    assert len(PROGRAMS) == 2


def test_every_option_is_in_the_table_and_no_other() -> None:
    table = TEXT.partition("## Options")[2].partition("\n\n`nodelist`")[0]
    rows = re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    assert named - {"queue_timeout", "ip"} == {field.name for field in fields(SlurmOptions)}
