"""Twenty seconds of chaos on each backend; `python -m tests.faults.chaos` goes on for as long as it is told."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.faults.chaos import Chaos, cluster_of, run
from tests.support.schedulers_under_test import OF_PROCESSES, each

SECONDS = 20.0


@pytest.mark.slow("three times twenty seconds, and a cluster", seconds=35)
@pytest.mark.parametrize("backend", each(OF_PROCESSES))
def test_whatever_is_hit_every_call_ends_and_nothing_is_left(
    backend: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A seed's first rounds hold what they must; what did not is printed."""
    with cluster_of(backend) as cluster:
        chaos = Chaos(backend, 1, cluster, tmp_path)
        assert run(chaos, 1, 1000, time.monotonic() + SECONDS) == 0, capsys.readouterr().out
    assert chaos.totals["rounds"] > 0 and chaos.totals["calls"] > 0
