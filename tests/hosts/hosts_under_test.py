"""Clusters of hosts with networks of their own, whose cables tests pull: what a test asks of either kind."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ray_census import Census, census_of
from ray_cluster import needs_ray
from ray_hosts import RayHosts
from ray_nodes import new_folder, running
from worker_processes import wait_for

from rolecall import Scheduler
from rolecall.schedulers.ray import RayScheduler
from rolecall.schedulers.slurm import SlurmScheduler

SLURM = Path(__file__).parents[1] / "clusters" / "slurm"


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
    """Networks of their own; files and pids are the machine's."""

    def __init__(self, layout: dict[str, Any]) -> None:
        self._conf, self._controller = str(layout["conf"]), str(layout["address"])
        self.cables = {str(node["address"]): str(node["veth"]) for node in layout["nodes"]}

    def scheduler(self, patch: pytest.MonkeyPatch, **options: Any) -> Scheduler:
        patch.setenv("SLURM_CONF", self._conf)
        return SlurmScheduler(ip=self._controller, **options)

    def root(self, address: str) -> Path:
        return Path("/")

    def left(self) -> list[Any]:
        jobs = subprocess.run(["squeue", "--noheader"], capture_output=True, text=True, check=True)
        return jobs.stdout.splitlines()


class OfRay(Hosts):
    """Networks, pids and temporary files of their own."""

    def __init__(self, cluster: RayHosts, census: Census) -> None:
        self.cluster, self._census, self._pulled = cluster, census, set[str]()
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
        self._pulled.add(address)
        super().pull(address)

    def mend(self) -> None:
        """Ray gives up who was cut off, now or in a moment, and lets nobody back: these hosts are made anew."""
        super().mend()
        gone = [node["NodeID"] for node in self._nodes() if node["NodeManagerAddress"] in self._pulled]
        for address in self._pulled:
            self.cluster.crash(self.name(address))
            self.cluster.add_node(self.name(address))
        wait_for(lambda: not any(n["Alive"] and n["NodeID"] in gone for n in self._nodes()), 60, "end of lost nodes")
        self._pulled.clear()

    def _nodes(self) -> list[dict[str, Any]]:
        return self._census.take()["nodes"]


@contextlib.contextmanager
def of_slurm() -> Iterator[Hosts]:
    with tempfile.TemporaryDirectory(prefix="rcs-", dir="/tmp") as folder:
        Path(folder).chmod(0o755)  # munge's clients must reach its socket
        of_ours = ["--netns", f"--dir={folder}/c"]
        owner = f"--owner={os.getpid()}"  # gone with us, if we are killed
        subprocess.run([sys.executable, SLURM, "up", owner, *of_ours], check=True, stdout=subprocess.PIPE)
        try:
            told = subprocess.run(
                [sys.executable, SLURM, "status", "--json", *of_ours], check=True, stdout=subprocess.PIPE
            )
            yield OfSlurm(json.loads(told.stdout))
        finally:
            subprocess.run([sys.executable, SLURM, "down", *of_ours], check=True)


@contextlib.contextmanager
def of_ray() -> Iterator[OfRay]:
    needs_ray()
    with running(RayHosts(new_folder())) as cluster, census_of(cluster) as census:
        yield OfRay(cluster, census)


KINDS = {"slurm": of_slurm, "ray": of_ray}
