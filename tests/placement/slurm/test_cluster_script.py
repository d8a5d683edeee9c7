"""The script that makes the tests' Slurm clusters: up and down as often as one likes, and nothing stays."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.slurm_cluster import SCRIPT, skip_if_missing
from tests.support.waiting import wait_for

pytestmark = pytest.mark.slow("clusters of their own")

Script = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def place() -> Iterator[Path]:
    """Where a cluster of this test's own goes: at a short path, for the sockets in it."""
    folder = Path(tempfile.mkdtemp(prefix="rct-c-", dir="/tmp"))
    folder.chmod(0o755)  # munge's clients must get at its socket
    yield folder / "c"
    subprocess.run([SCRIPT, "down", "--dir", folder / "c"], check=True, timeout=120)
    shutil.rmtree(folder)


@pytest.fixture
def script(place: Path) -> Script:
    def run(*args: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run([SCRIPT, *args, "--dir", place], capture_output=True, text=True, timeout=120)
        skip_if_missing(done)
        return done

    return run


def status(script: Script) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(script("status", "--json").stdout)
    return answer


def alive(seen: dict[str, Any]) -> list[int]:
    """Which of the daemons of a status still run."""
    return [pid for pid in seen["daemons"].values() if Path(f"/proc/{pid}/exe").exists()]


def job(conf: str, *options: str) -> str:
    """Submits a job that would run for long; returns its id."""
    command = ["sbatch", "--parsable", "--output=/dev/null", "--wrap=exec sleep 600", *options]
    done = subprocess.run(command, env=os.environ | {"SLURM_CONF": conf}, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.mark.parametrize("hosts", [[], ["--netns"]], ids=["one-host", "two-hosts"])
def test_a_cluster_comes_up_once_and_goes_down_whole(script: Script, place: Path, hosts: list[str]) -> None:
    """Up again is no second cluster; down ends jobs and daemons, and down again is no mistake."""
    first = script("up", *hosts)
    assert (first.returncode, first.stdout) == (0, f"export SLURM_CONF={place}/slurm.conf\n"), first.stderr
    seen = status(script)
    assert script("up", *hosts).stdout == first.stdout
    assert status(script)["daemons"] == seen["daemons"]
    assert all(seen["daemons"].values())
    assert seen["states"] == {"n1": "idle", "n2": "idle"}

    running = job(seen["conf"], "--nodes=2", "--gres=gpu:4")
    wait_for(
        lambda: {"id": running, "state": "RUNNING"}.items() <= status(script)["jobs"][0].items(), 30, "running job"
    )
    assert script("down").returncode == 0
    assert not place.exists()
    assert not alive(seen)
    names = [seen["bridge"], *(node["veth"] for node in seen["nodes"])]
    assert not {link.name for link in Path("/sys/class/net").iterdir()}.intersection(names)
    assert script("down").returncode == 0


def test_up_starts_a_daemon_that_died_and_leaves_the_others(script: Script) -> None:
    """A second `up` restarts exactly the daemons that are gone."""
    assert script("up").returncode == 0
    before = status(script)["daemons"]
    os.kill(before["slurmd-n2"], 9)
    wait_for(lambda: status(script)["daemons"]["slurmd-n2"] is None, 10, "death")
    assert script("up").returncode == 0
    after = status(script)["daemons"]
    assert {name for name in before if before[name] != after[name]} == {"slurmd-n2"}


def test_a_cluster_goes_down_when_its_owner_is_killed(script: Script, place: Path) -> None:
    """Also by a signal that lets the owner take nothing down."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as owner:
        assert script("up", f"--owner={owner.pid}").returncode == 0
        seen = status(script)
        owner.kill()
    wait_for(lambda: not place.exists(), 30, "end of the cluster")
    assert not alive(seen)


def test_nodes_share_no_private_folder(script: Script, place: Path, tmp_path: Path) -> None:
    """What a job writes there, the other node and this machine do not see; nor does it see what lies there here."""
    (tmp_path / "here").touch()
    seen = script("up", "--netns", f"--private={tmp_path}")
    assert seen.returncode == 0, seen.stderr
    conf = status(script)["conf"]
    command = [
        "srun",
        "--nodes=2",
        "--mem=1G",
        "--chdir=/",
        "bash",
        "-c",
        f"ls {tmp_path}; touch {tmp_path}/there; ls {tmp_path}",
    ]
    done = subprocess.run(command, env=os.environ | {"SLURM_CONF": conf}, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("there\nthere\n", "")
    assert [path.name for path in tmp_path.iterdir()] == ["here"]


def test_a_folder_with_other_things_in_it_is_left_alone(script: Script, place: Path) -> None:
    """`up` and `down` refuse a folder that is no cluster's."""
    place.mkdir()
    (place / "thesis.tex").write_text("years")
    for command in ("up", "down"):
        done = script(command)
        assert done.returncode == 1
        assert "holds other things" in done.stderr
    shutil.rmtree(place)
