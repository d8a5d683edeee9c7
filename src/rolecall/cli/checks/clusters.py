"""Clusters: whether Slurm and Ray can be reached from here, where there are signs of them."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator, Mapping

from rolecall.cli.checks.finding import Finding, info, ok, warning

TIMEOUT_S = 5.0
SLURM, RAY = "slurm", "ray"
CANNOT_START = ("down", "drain", "drng", "fail", "maint", "unk")


def check_slurm() -> Iterator[Finding]:
    """The command line tools, the controller daemon, and nodes that take no job."""
    if shutil.which("sbatch") is None:
        yield info(SLURM, "no sbatch on PATH", 'only needed for scheduler("slurm"), on a login node of the cluster')
        return
    asked = _ask("sinfo", "--noheader", "--Node", "--format=%N %t")
    if isinstance(asked, str):
        yield warning(SLURM, f"Slurm is installed but does not answer: {asked}", "see docs/slurm.md", "scontrol ping")
        return
    nodes = dict(line.split(maxsplit=1) for line in asked.stdout.split("\n") if " " in line)
    closed = [f"{node} ({state})" for node, state in nodes.items() if state.lower().startswith(CANNOT_START)]
    if closed:
        yield warning(
            SLURM, f"{len(closed)} of {len(nodes)} node(s) take no job: {', '.join(closed[:8])}", "ask why", "sinfo -R"
        )
    if len(closed) < len(nodes):
        yield ok(SLURM, f"{len(nodes) - len(closed)} node(s) take jobs")


def _ask(*argv: str) -> subprocess.CompletedProcess[str] | str:
    """What a command said, or why it said nothing."""
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=TIMEOUT_S, env=os.environ | {"LC_ALL": "C"})
    except subprocess.TimeoutExpired:
        return f"no answer within {TIMEOUT_S:g} s"
    except OSError as e:
        return f"{argv[0]}: {e.strerror}"
    return done if done.returncode == 0 else done.stderr.strip().rpartition("\n")[2] or f"status {done.returncode}"


def check_ray(env: Mapping[str, str] = os.environ) -> Iterator[Finding]:
    """Whether somebody listens where `RAY_ADDRESS` says that the cluster is."""
    address = env.get("RAY_ADDRESS", "")
    host, _, port = address.rpartition(":")
    if not address:
        yield info(RAY, "RAY_ADDRESS is not set", 'scheduler("ray") starts a Ray of its own where none runs')
    elif address.startswith("ray://") or not host or not port.isdigit():
        advice = "name the head's own address, host:port (6379 by default); see docs/ray.md"
        yield warning(RAY, f"RAY_ADDRESS={address} is no address of a cluster's head", advice)
    else:
        yield _reached(host.strip("[]"), int(port))


def _reached(host: str, port: int) -> Finding:
    try:
        socket.create_connection((host, port), TIMEOUT_S).close()
    except OSError as e:
        advice = "start the cluster, or correct RAY_ADDRESS"
        return warning(RAY, f"nobody answers at {host}:{port}, where RAY_ADDRESS points: {e}", advice, "ray status")
    return ok(RAY, f"a Ray cluster's head answers at {host}:{port}")
