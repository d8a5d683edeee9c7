"""What docs/ray.md shows runs, as it stands there, and its tables name what there is."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from rolecall.scheduler.backends import options_of
from rolecall.types import RayPlacementStrategy
from tests.clusters.ray_nodes import RayCluster
from tests.support.checkout import ROOT, SOURCES

TEXT = (ROOT / "docs" / "ray.md").read_text()
PROGRAMS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


@pytest.mark.parametrize(("index", "printed"), [(0, "[1.5, 1.5]\n"), (1, "[[{'CPU': 2.0}]]\n"), (2, "100 1\n")])
def test_a_program_of_the_page_runs(index: int, printed: str, cluster: RayCluster, tmp_path: Path) -> None:
    """Each program of docs/ray.md runs as it stands there, and its last line is what it shows."""
    script = tmp_path / "program.py"
    script.write_text(PROGRAMS[index])
    env = {**os.environ, **cluster.exports, "HOME": str(tmp_path), "PYTHONPATH": str(SOURCES)}
    done = subprocess.run([sys.executable, script], env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(printed)  # Ray tells of dead actors on stdout


def test_every_program_of_the_page_is_run() -> None:
    """docs/ray.md has no program beyond those that are run here."""
    assert len(PROGRAMS) == 3


def test_every_option_and_strategy_is_in_its_table_and_no_other() -> None:
    """The tables in docs/ray.md equal the options and strategies of the code."""

    def named(table: str) -> set[str]:
        return set(re.findall(r"^\| `(\w+)`", table, re.MULTILINE))

    own = options_of("ray") - options_of("slurm") | {"n_gpus_per_node", "queue_timeout", "ip"}
    assert named(TEXT.partition("## Options")[2].partition("\n\n`tensor_backend")[0]) == own
    assert named(TEXT.partition("| `ray_placement_strategy`")[2].partition("- Names")[0]) == set(
        get_args(RayPlacementStrategy)
    )
