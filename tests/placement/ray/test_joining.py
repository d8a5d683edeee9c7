"""Which cluster a scheduler joins, and from where."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rolecall import RayScheduler
from rolecall.errors import WorkerConfigurationError
from tests.clusters.ray_nodes import RayCluster
from tests.support.ray_cluster import placement_of


def test_ray_address_names_the_cluster(make: Callable[..., RayScheduler], cluster: RayCluster) -> None:
    """Without an option the variable RAY_ADDRESS names the cluster."""
    address = cluster.exports["RAY_ADDRESS"]
    assert placement_of(make(address=None, settings={"RAY_ADDRESS": address})).address == address


def test_a_cluster_that_this_user_has_running_here_is_joined(
    make: Callable[..., RayScheduler], cluster: RayCluster, tmp_path: Path
) -> None:
    """It is known from the note that `ray start` leaves, below RAY_TMPDIR here so that no other one is found."""
    note = tmp_path / "ray" / "ray_current_cluster"
    note.parent.mkdir()
    note.write_bytes((cluster.folder / note.name).read_bytes())
    s = make(address=None, settings={"RAY_TMPDIR": str(tmp_path)})
    assert placement_of(s).address == cluster.exports["RAY_ADDRESS"]
    assert s.start("actor", cpu=1).name == "actor"


@pytest.mark.parametrize("address", ["ray://head:10001", "head"])
def test_an_address_is_a_host_and_a_port(tmp_path: Path, address: str) -> None:
    """Ray client addresses and bare hosts are refused."""
    with pytest.raises(WorkerConfigurationError, match="an address is host:port"):
        RayScheduler(address=address, fileroot=tmp_path)


def test_an_unknown_accelerator_is_refused(tmp_path: Path) -> None:
    """The error lists the accelerators that exist."""
    with pytest.raises(WorkerConfigurationError, match="unknown accelerator: 'tpu'; use one of gpu, npu, none"):
        RayScheduler(accelerator="tpu", fileroot=tmp_path)  # type: ignore[arg-type]


@pytest.mark.parametrize("count", [-1, 1.5, True, "4"])
def test_devices_of_a_node_are_a_whole_number(tmp_path: Path, count: Any) -> None:
    """A bad `n_gpus_per_node` is refused."""
    with pytest.raises(WorkerConfigurationError, match=r"bad n_gpus_per_node: .*; use a whole number"):
        RayScheduler(n_gpus_per_node=count, fileroot=tmp_path)


def test_without_ray_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says which extra to install."""
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(WorkerConfigurationError, match=r"pip install 'rolecall\[ray\]'"):
        RayScheduler(fileroot=tmp_path)
