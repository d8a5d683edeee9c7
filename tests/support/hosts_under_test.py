"""Clusters of hosts with networks of their own, whose cables tests pull: what a test asks of either kind."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rolecall import RayScheduler, Scheduler, SlurmScheduler
from tests.clusters.ray_census import Census, census_of
from tests.clusters.ray_hosts import RayHosts
from tests.clusters.ray_nodes import new_folder, running
from tests.support.ray_cluster import needs_ray
from tests.support.slurm_cluster import SCRIPT, SlurmCluster, running_slurm
from tests.support.waiting import wait_for

BACK_WITHIN_S = 60.0  # slurmctld asks a node that did not answer again by and by


class Hosts(ABC):
    """The hosts of a cluster. Attributes: `cables` are the names of their cables by their addresses."""

    cables: dict[str, str]

    def pull(self, address: str) -> None:
        subprocess.run(["ip", "link", "set", self.cables[address], "down"], check=True)

    def plug(self, address: str) -> None:
        subprocess.run(["ip", "link", "set", self.cables[address], "up"], check=True)

    def mend(self) -> None:
        for address in self.cables:
            self.plug(address)

    @abstractmethod
    def scheduler(self, patch: pytest.MonkeyPatch, **options: Any) -> Scheduler: ...

    @abstractmethod
    def root(self, address: str) -> Path:
        """Where the files of a host are."""

    @abstractmethod
    def left(self) -> list[Any]:
        """What the cluster still has of us."""


class OfSlurm(Hosts):
    """Networks of their own, and folders where `of_slurm` says so; pids are the machine's."""

    def __init__(self, cluster: SlurmCluster) -> None:
        command = [str(SCRIPT), "status", "--json", f"--dir={cluster.folder}"]
        layout = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
        self.cluster, self._controller = cluster, str(layout["address"])
        self.cables = {str(node["address"]): str(node["veth"]) for node in layout["nodes"]}
        self._slurmds = {str(node["address"]): layout["daemons"][f"slurmd-{node['name']}"] for node in layout["nodes"]}

    def scheduler(self, patch: pytest.MonkeyPatch, **options: Any) -> Scheduler:
        for name, value in self.cluster.exports.items():
            patch.setenv(name, value)
        return SlurmScheduler(**{"ip": self._controller, **options})

    def root(self, address: str) -> Path:
        return Path(f"/proc/{self._slurmds[address]}/root")

    def left(self) -> list[Any]:
        return list(self.cluster.jobs().items())

    def check_clean(self) -> None:
        """All nodes are back and idle, whatever became of their cables, and none is drained or down."""
        for slurmd in self._slurmds.values():
            os.kill(slurmd, signal.SIGHUP)  # it says that it is there, instead of waiting until it is asked
        self.cluster.check_clean(within_s=BACK_WITHIN_S)


class OfRay(Hosts):
    """Networks, pids and temporary files of their own."""

    def __init__(self, cluster: RayHosts, census: Census) -> None:
        self.cluster, self._census, self._lost = cluster, census, set[str]()
        self.cables = {node.address: str(node.veth) for node in cluster.layout.nodes}

    def scheduler(self, patch: pytest.MonkeyPatch, **options: Any) -> Scheduler:
        for name, value in self.cluster.exports.items():
            patch.setenv(name, value)
        return RayScheduler(**options)

    def name(self, address: str) -> str:
        return next(node.name for node in self.cluster.layout.nodes if node.address == address)

    def root(self, address: str) -> Path:
        return Path(f"/proc/{self.cluster.first(self.name(address))}/root")

    def left(self) -> list[Any]:
        found = self._census.take()
        return [*found["actors"], *found["groups"], *found["jobs"], *found["objects"]]

    def pull(self, address: str) -> None:
        self._lost.add(address)
        super().pull(address)

    def crash(self, address: str) -> None:
        """Ends all processes of a host at the same moment."""
        self._lost.add(address)
        self.cluster.crash(self.name(address))

    def kill_raylet(self, address: str) -> None:
        self._lost.add(address)
        self.cluster.kill("raylet", self.name(address))

    def mend(self) -> None:
        """Ray gives up who was lost, now or in a moment, and lets nobody back: these hosts are made anew."""
        super().mend()
        gone = [node["NodeID"] for node in self._nodes() if node["NodeManagerAddress"] in self._lost]
        for address in self._lost:
            self.cluster.crash(self.name(address))
            self.cluster.add_node(self.name(address))
        wait_for(lambda: not any(n["Alive"] and n["NodeID"] in gone for n in self._nodes()), 60, "end of lost nodes")
        self._lost.clear()

    def _nodes(self) -> list[dict[str, Any]]:
        return self._census.take()["nodes"]


@contextlib.contextmanager
def of_slurm(*options: str) -> Iterator[OfSlurm]:
    """Up and down again, which must be in order at the end. `options`: further ones of the cluster's script."""
    with running_slurm("--netns", *options) as cluster:
        hosts = OfSlurm(cluster)
        yield hosts
        hosts.check_clean()


def needs_networks() -> None:
    """Where hosts cannot be made the test is skipped on a developer's machine, and fails in CI."""
    missing = [name for name in ("ip", "nsenter", "unshare") if shutil.which(name) is None]
    if (missing or os.geteuid() != 0) and not os.environ.get("CI"):
        pytest.skip(f"no {', '.join(missing) or 'root'} here: apt-get install iproute2 util-linux, and run it as root")


@contextlib.contextmanager
def of_ray() -> Iterator[OfRay]:
    needs_ray()
    needs_networks()
    with running(RayHosts(new_folder())) as cluster, census_of(cluster) as census:
        yield OfRay(cluster, census)
