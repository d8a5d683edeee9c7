"""A Ray cluster of several hosts on this machine: each node has a network, mounts and pids of its own, and a cable."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import BinaryIO

from tests.clusters import cables
from tests.clusters.ray_host import READY, in_namespaces
from tests.clusters.ray_nodes import NODE_DEVICES, RayCluster, command_line
from tests.clusters.slurm_layout import Layout, Node, bridge_of


class RayHosts(RayCluster):
    """The head on the machine itself, at the bridge between all; every other node on a host of its own.

    A host shares no folder for temporary files with the machine, and its pids are its own: what dies with its first
    process is all of it.
    """

    def start(self, nodes: int = 2, *, token: bool = False, devices: int = NODE_DEVICES) -> None:
        if token:
            raise ValueError("a token is in a file that these hosts do not see")
        self.folder.mkdir(parents=True, exist_ok=True)
        subnet = cables.claim_subnet()
        bridge = bridge_of(subnet)
        hosts = (self._host(bridge, f"10.213.{subnet}", n) for n in range(1, nodes + 1))
        layout = Layout(self.folder, "", f"10.213.{subnet}.1", 0, tuple(hosts), bridge)
        self.cables.write_text(layout.to_json())
        cables.lay(layout)
        super().start(nodes, devices=devices)

    @staticmethod
    def _host(bridge: str, net: str, number: int) -> Node:
        return Node(f"n{number}", f"{net}.{10 + number}", 0, f"{bridge}-n{number}", f"{bridge}-n{number}")

    @property
    def layout(self) -> Layout:
        return Layout.from_json(self.cables.read_text())

    def at(self, name: str) -> Node:
        """A host by the name of its node."""
        (found,) = [node for node in self.layout.nodes if node.name == name]
        return found

    def add_head(self, *args: str) -> None:
        super().add_head(f"--node-ip-address={self.layout.address}", *args)

    def add_node(self, name: str, devices: int = NODE_DEVICES, *args: str) -> None:
        super().add_node(name, devices, f"--node-ip-address={self.at(name).address}", *args)

    def crash(self, name: str) -> None:
        """Ends all processes of a host at the same moment, if it has any."""
        for pid in self._firsts(name):
            os.kill(pid, signal.SIGKILL)

    def first(self, name: str) -> int:
        """The first process of a host."""
        return self._firsts(name)[0]

    def _firsts(self, name: str) -> list[int]:
        lines = ((pid, command_line(pid)) for pid in self.pids())
        return [pid for pid, line in lines if "ray_host.py" in " ".join(line[:3]) and self._address(name) in line]

    def _address(self, name: str) -> str:
        return f"--node-ip-address={self.at(name).address}"

    def _carry_out(self, name: str, command: list[str], out: BinaryIO) -> bool:
        if name == "head":
            return super()._carry_out(name, command, out)
        hidden = [self.folder, Path(tempfile.gettempdir())]
        host = subprocess.Popen(
            in_namespaces(str(self.at(name).netns), hidden, command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=out,
            start_new_session=True,
            env=self.environment(),
        )
        assert host.stdout is not None
        with host.stdout as said:
            return said.read(len(READY)) == READY
