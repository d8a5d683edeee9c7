"""Where a cluster cannot be had, its tests are skipped with a line that says how to get it; in CI they fail."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.hosts_under_test import needs_networks, of_ray, of_slurm
from tests.support.ray_cluster import running_ray
from tests.support.slurm_cluster import running_slurm

Cluster = Callable[[], Any]
NO_RAY = r"no Ray here: pip install 'rolecall\[ray\]'"
NO_IP = "no ip, nsenter, unshare here: apt-get install iproute2 util-linux, and run it as root"
HOW = r"no .*sbatch.* here: apt-get install slurm-wlm munge iproute2"


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with Python and nothing else."""
    (tmp_path / "python3").symlink_to(sys.executable)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "ray", None)


@pytest.mark.parametrize(
    ("running", "line"),
    [(running_slurm, HOW), (of_slurm, HOW), (running_ray, NO_RAY), (of_ray, NO_RAY), (needs_networks, NO_IP)],
)
def test_a_developers_machine_is_told_how_to_get_it(
    bare: None, monkeypatch: pytest.MonkeyPatch, running: Cluster, line: str
) -> None:
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match=line):
        running().__enter__()


@pytest.mark.parametrize("running", [running_slurm, of_slurm])
def test_in_ci_it_is_a_failure(bare: None, monkeypatch: pytest.MonkeyPatch, running: Cluster) -> None:
    monkeypatch.setenv("CI", "1")
    with pytest.raises(AssertionError, match=HOW), running():
        pytest.fail("there is a cluster")
