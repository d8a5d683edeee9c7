"""A Slurm cluster whose nodes are hosts: each has an address of its own, a cable, and perhaps folders of its own."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from slurm_cluster import SCRIPT, SlurmCluster, running_slurm

from rolecall import Scheduler
from rolecall.schedulers.slurm import SlurmScheduler

BACK_WITHIN_S = 60.0  # slurmctld asks a node that did not answer again by and by


class Hosts:
    """The cluster's nodes by their addresses."""

    def __init__(self, cluster: SlurmCluster) -> None:
        told = subprocess.run(
            [SCRIPT, "status", "--json", f"--dir={cluster.folder}"], check=True, stdout=subprocess.PIPE
        )
        layout: dict[str, Any] = json.loads(told.stdout)
        self.cluster, self.controller = cluster, str(layout["address"])
        self.cables = {str(node["address"]): str(node["veth"]) for node in layout["nodes"]}
        self._slurmds = {str(node["address"]): layout["daemons"][f"slurmd-{node['name']}"] for node in layout["nodes"]}

    def use(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Has Slurm's commands of this test find it."""
        for variable, value in self.cluster.exports.items():
            monkeypatch.setenv(variable, value)

    def pull(self, address: str) -> None:
        subprocess.run(["ip", "link", "set", self.cables[address], "down"], check=True)

    def plug(self, address: str) -> None:
        subprocess.run(["ip", "link", "set", self.cables[address], "up"], check=True)

    def as_seen_on(self, address: str, path: str | Path) -> Path:
        """Where a path of a node can be read from here."""
        return Path(f"/proc/{self._slurmds[address]}/root/{path}")

    def check_clean(self) -> None:
        """All nodes are back and idle, whatever became of their cables, and none is drained or down."""
        for slurmd in self._slurmds.values():
            os.kill(slurmd, signal.SIGHUP)  # it says that it is there, instead of waiting until it is asked
        self.cluster.check_clean(BACK_WITHIN_S)


@contextlib.contextmanager
def running_hosts(*options: str) -> Iterator[Hosts]:
    """Brings a cluster up and down, which must be in order at the end; see `running_slurm`."""
    with running_slurm("--netns", *options) as cluster:
        hosts = Hosts(cluster)
        yield hosts
        hosts.check_clean()


@contextlib.contextmanager
def scheduler_on(hosts: Hosts, fileroot: Path, **options: Any) -> Iterator[Scheduler]:
    """A scheduler that leaves no job behind. Cables are plugged in before it ends."""
    defaults: dict[str, Any] = {"experiment": "hosts", "trial": "t", "fileroot": fileroot, "preload": []}
    with SlurmScheduler(**{**defaults, "ip": hosts.controller, **options}) as scheduler:
        yield scheduler
        for address in hosts.cables:
            hosts.plug(address)
    assert hosts.cluster.jobs() == {}
