"""Where no cluster is named and none runs, a run has one of its own, which nobody else can use."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import sample_engines

from rolecall import RayScheduler

STRANGER = "import ray, sys; ray.init(address=sys.argv[1], log_to_driver=False)"


@pytest.mark.parametrize("owner", [os.getuid(), 65534], ids=["dead", "of-another-user"])
def test_a_cluster_that_is_dead_or_anothers_is_not_joined(
    owner: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray's note of what runs on a host lies where others may write one too."""
    for name in [name for name in os.environ if name.startswith("RAY_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    note = tmp_path / "ray" / "ray_current_cluster"
    note.parent.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        note.write_text(f"127.0.0.1:{1 if owner == os.getuid() else listening.getsockname()[1]}")
        os.chown(note, owner, -1)
        with RayScheduler(experiment="own", trial="t", fileroot=tmp_path, preload=[], quiet=True) as s:
            assert str(s._address) != note.read_text()
            assert s.start("actor", cpu=1, mem=1).name == "actor"


def test_it_asks_for_a_token_that_the_user_alone_can_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of Ray is set, as on a machine where it was just installed."""
    for name in [name for name in os.environ if name.startswith("RAY_")]:
        monkeypatch.delenv(name)
    with RayScheduler(experiment="own", trial="t", fileroot=tmp_path, preload=[], quiet=True) as s:
        folder = Path(f"/tmp/rc-ray-{s.run_id}")
        role = s.start("actor", cpu=1, mem=1)
        role.create_engine(sample_engines.Echo)
        assert role.call("greet") == ["hello"]
        assert (folder.stat().st_mode & 0o777, (folder / "token").stat().st_mode & 0o777) == (0o700, 0o600)
        stranger = subprocess.run(
            [sys.executable, "-c", STRANGER, str(s._address)], capture_output=True, text=True, timeout=120
        )
        assert stranger.returncode != 0 and "AuthenticationError" in stranger.stderr
    assert not folder.exists()
