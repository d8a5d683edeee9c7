"""Network namespaces joined by a bridge: hosts with addresses of their own, each on a cable that can be pulled."""

from __future__ import annotations

import json
import shlex
import subprocess

from tests.clusters.slurm_layout import Layout, Node, bridge_of


def claim_subnet() -> int:
    """Makes the bridge of the first 10.213.x.0/24 that is free and returns x. Of several who want it, one gets it."""
    links = _ip("-json", "addr")
    taken = {info["local"] for link in json.loads(links) for info in link.get("addr_info", [])}
    taken |= {route.get("dst", "") for route in json.loads(_ip("-json", "route"))}
    for subnet in range(1, 255):
        free = not any(address.startswith(f"10.213.{subnet}.") for address in taken)
        if free and _succeeds("link", "add", bridge_of(subnet), "type", "bridge"):
            return subnet
    raise OSError("no bridge in 10.213.1.0/24 to 10.213.254.0/24 can be made; take clusters down, or be root")


def lay(layout: Layout) -> None:
    """Makes the bridge, and for every node a namespace with a cable to it. What there is already is kept."""
    bridge = layout.bridge
    if bridge is None:
        return
    if not any(link.get("addr_info") for link in json.loads(_ip("-json", "-4", "addr", "show", "dev", bridge))):
        _ip("addr", "add", f"{layout.address}/24", "dev", bridge)
    _ip("link", "set", bridge, "up")
    for node in layout.nodes:
        if node.netns and node.veth and not _succeeds("link", "show", node.veth):
            _connect(bridge, node, node.netns, node.veth)


def _connect(bridge: str, node: Node, netns: str, veth: str) -> None:
    if not _succeeds("-n", netns, "link"):
        _ip("netns", "add", netns)
    _ip("link", "add", veth, "type", "veth", "peer", "name", "eth0", "netns", netns)
    _ip("link", "set", veth, "master", bridge, "up")
    _ip("-n", netns, "addr", "add", f"{node.address}/24", "dev", "eth0")
    _ip("-n", netns, "link", "set", "eth0", "up")
    _ip("-n", netns, "link", "set", "lo", "up")


def remove(layout: Layout) -> None:
    """Removes namespaces, cables and bridge, as far as they are there."""
    for node in layout.nodes:
        if node.veth and _succeeds("link", "show", node.veth):
            _ip("link", "del", node.veth)
        if node.netns and _succeeds("-n", node.netns, "link"):
            _ip("netns", "del", node.netns)
    if layout.bridge and _succeeds("link", "show", layout.bridge):
        _ip("link", "del", layout.bridge)


def inside(layout: Layout, node: Node, command: tuple[str, ...]) -> tuple[str, ...]:
    """The command, run in the node's network and with its private folders; /tmp, /sys and /proc stay shared."""
    network = ("nsenter", f"--net=/run/netns/{node.netns}") if node.netns else ()
    mounts = [f"mount -t tmpfs -o mode=755 none {shlex.quote(folder)}" for folder in layout.private]
    folders = ("unshare", "--mount", "--propagation=slave", "sh", "-c", " && ".join([*mounts, 'exec "$@"']), "sh")
    return (*network, *(folders if mounts else ()), *command)


def _succeeds(*args: str) -> bool:
    return subprocess.run(["ip", *args], capture_output=True).returncode == 0


def _ip(*args: str) -> str:
    done = subprocess.run(["ip", *args], capture_output=True, text=True)
    if done.returncode:
        raise OSError(f"ip {' '.join(args)}: {done.stderr.strip()}")
    return done.stdout
