"""Ray without a run of our own: whether a cluster can be reached from here, and files of a run's own cluster."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from rolecall.placement.outside import Finding, info, is_private, ok, warning
from rolecall.transport.address import dial_host

CHECK = "ray"
TIMEOUT_S = 5.0


def folder_of(run_id: str) -> Path:
    """Where a run's own cluster lies. Short: a Unix socket's path holds 107 bytes, Ray needs 79 of them."""
    return Path(f"/tmp/rc-ray-{run_id}")


def remove_cluster(run_id: str) -> None:
    """Removes the files of a cluster of the run's own, whose processes are gone, if there are any."""
    folder = folder_of(run_id)
    if folder.parent == Path("/tmp") and is_private(folder):
        shutil.rmtree(folder, ignore_errors=True)


def check_ray(env: Mapping[str, str] = os.environ) -> Iterator[Finding]:
    """Whether somebody listens where `RAY_ADDRESS` says that the cluster is."""
    address = env.get("RAY_ADDRESS", "")
    if not address:
        yield info(CHECK, "RAY_ADDRESS is not set", 'scheduler("ray") starts a Ray of its own where none runs')
        return
    try:
        dial_host(address, TIMEOUT_S)
        yield ok(CHECK, f"a Ray cluster's head answers at {address}")
    except ValueError:
        advice = "name the head's own address, host:port (6379 by default); see docs/ray.md"
        yield warning(CHECK, f"RAY_ADDRESS={address} is no address of a cluster's head", advice)
    except OSError as e:
        seen = f"nobody answers at {address}, where RAY_ADDRESS points: {e}"
        yield warning(CHECK, seen, "start the cluster, or correct RAY_ADDRESS", "ray status")
