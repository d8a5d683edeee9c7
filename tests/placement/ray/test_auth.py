"""Ray's token authentication: a cluster that asks for a token."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from rolecall import RayScheduler
from rolecall.errors import WorkerConfigurationError
from tests.clusters.ray_nodes import RayCluster
from tests.placement.ray.ray_engines import Inside


def test_a_cluster_with_a_token_is_joined_with_it(guarded: RayCluster, make: Callable[..., RayScheduler]) -> None:
    """With the token in the environment a role starts on the cluster."""
    role = make(on=guarded).start("actor", replicas=2, gpu=1, cpu=1)
    role.create_engine(Inside)
    assert len(set(role.call("pid"))) == 2


def test_without_the_token_the_advice_is_to_set_it(guarded: RayCluster, make: Callable[..., RayScheduler]) -> None:
    """A refused connection names the variable to set."""
    with pytest.raises(WorkerConfigurationError, match="set RAY_AUTH_MODE=token"):
        make(address=guarded.exports["RAY_ADDRESS"])


def test_with_a_wrong_token_the_advice_is_to_set_the_right_one(
    guarded: RayCluster, make: Callable[..., RayScheduler], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wrong token fails like a missing one, though the right one was used before."""
    (tmp_path / "token").write_text("wrong")
    make(on=guarded)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    with pytest.raises(WorkerConfigurationError, match="set RAY_AUTH_MODE=token"):
        RayScheduler(address=guarded.exports["RAY_ADDRESS"], fileroot=tmp_path / "other")
