"""Twenty seconds of chaos on each backend; `python -m tests.faults.chaos` goes on for as long as it is told."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from tests.faults.chaos import Chaos, cluster_of, run


@pytest.mark.slow("twenty seconds on each backend, beside bringing up a cluster of its own", seconds=35)
@pytest.mark.parametrize(
    ("backend", "seed", "rounds"),
    [("local", 49926, 3), ("slurm", 12484, 2), ("ray", 65526, 2)],
    ids=["local", "slurm", "ray"],
)
def test_whatever_is_hit_every_call_ends_and_nothing_is_left(
    backend: str, seed: int, rounds: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the first rounds of these seeds controller, guard, reaper, template, worker, slurmd and raylet are hit."""
    with cluster_of(backend) as cluster:
        chaos = Chaos(backend, seed, cluster, tmp_path)
        assert run(chaos, 1, rounds, math.inf) == 0, capsys.readouterr().out
    assert chaos.totals["rounds"] == rounds
    assert all(chaos.struck[kind] for kind in ("controller", "guard", "reaper", "template")), chaos.struck
