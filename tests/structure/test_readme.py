"""What the README and docs/patterns.md show runs, as it stands there; the README also with another scheduler's name."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.checkout import ROOT, SOURCES
from tests.support.schedulers_under_test import BACKENDS, OF_PROCESSES, on

LOCAL = 'rolecall.scheduler("local"'
README, PATTERNS = (
    re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    for page in ("README.md", "docs/patterns.md")
)
PROGRAMS = [*README, *PATTERNS]
EXPECTED = [
    ["[1.5, 1.5]", "6.0"],
    ["[3, 7]", "3", "[3, 3]", "3", "Sample(ids=[1, 2], stop=<Stop.LENGTH: 'length'>)", "['t0', 't1', 't2']"],
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


CLUSTERS = [name for name in OF_PROCESSES if name != "local"]
RUNS = [
    *(on("local", index) for index in range(len(PROGRAMS))),
    *(on(CLUSTERS[index % len(CLUSTERS)], index) for index in range(len(README))),
]


@pytest.mark.slow("the page's programs, as a user would run them")
@pytest.mark.parametrize(("backend", "index"), RUNS)
def test_a_program_runs_and_prints_what_it_says(
    backend: str, index: int, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """Each program runs with the output that it shows; on a cluster, in turn, only the scheduler's name differs.

    (There torch is not preloaded, which takes each guard seconds. The contract says that clusters are alike.)
    """
    cluster = BACKENDS[backend].cluster
    exports = request.getfixturevalue(cluster).exports if cluster is not None else {}
    on_backend = LOCAL if cluster is None else LOCAL.replace("local", backend) + ", preload=[]"
    script = tmp_path / "program.py"
    script.write_text(PROGRAMS[index].replace(LOCAL, on_backend))
    paths = {"HOME": str(tmp_path), "PYTHONPATH": os.pathsep.join([str(SOURCES), *sys.path])}
    env = {**os.environ, **exports, **paths}
    done = subprocess.run([sys.executable, str(script)], env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stdout.splitlines() if line] == EXPECTED[index]
