"""How a run's Ray driver gets into a cluster, or starts one of its own that nobody else finds."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Any

from rolecall.placement import guard_process
from rolecall.placement.ray import guard as ray_guard
from rolecall.protocol.ray_driver import JoinCluster, Joined
from rolecall.transport import ray_internals
from rolecall.transport.address import dial_host

LOCAL_CPUS = 1024  # of a cluster of our own: on one machine cores set thread counts and keep no worker waiting
LOCAL_STORE_BYTES = 1 << 30
CALL_S = 5.0


def join(wanted: JoinCluster) -> Joined:
    """Connects to the cluster that is named, else RAY_ADDRESS's, else one that runs here, else one of our own."""
    import ray

    for module in (ray_guard, guard_process):
        ray.cloudpickle.register_pickle_by_value(module)
    address = wanted.address or os.environ.get("RAY_ADDRESS") or _running_here()
    how = {"namespace": wanted.namespace, "log_to_driver": False, "configure_logging": False, **wanted.init}
    if address is not None:
        _call_on(address)
        ray.init(address=address, **how)
    else:
        _init_own(how, Path(wanted.folder))
    nodes = [node for node in ray.nodes() if node["Alive"]]
    return Joined(
        address=ray.get_runtime_context().gcs_address,
        ip="127.0.0.1" if address is None else ray.util.get_node_ip_address(),
        most={key: max(node["Resources"].get(key, 0) for node in nodes) for key in ("GPU", "NPU", "CPU", "memory")},
        may_grow=address is not None and ray_internals.may_grow(node["NodeID"] for node in nodes),
    )


def _running_here() -> str | None:
    """The cluster that this user has started on this host, if it still answers.

    It is known from a file, in a folder that others may write to: theirs would get the run's token.
    """
    file = Path(ray_internals.address_file())
    try:
        with os.fdopen(os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)) as note:
            address = note.read().strip() if os.fstat(note.fileno()).st_uid == os.getuid() else ""
        dial_host(address, CALL_S)
    except (OSError, ValueError):
        return None
    return address


def _call_on(address: str) -> None:
    """Sees that a head is there and lets us in; `ray.init` repeats either question for minutes."""
    try:
        dial_host(address, CALL_S)
    except OSError as e:
        raise ConnectionError(f"its head does not answer ({e})") from e
    ray_internals.check_admitted(address)


def _init_own(how: dict[str, Any], folder: Path) -> None:
    """Starts a cluster that nobody else finds: its own folder, and its own token unless the user has said otherwise."""
    import ray

    folder.mkdir(mode=0o700)
    if "RAY_AUTH_MODE" not in os.environ:
        token = folder / "token"
        token.touch(mode=0o600)
        token.write_text(secrets.token_hex(32))
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
        ray_internals.read_settings_again()
    own = {"num_cpus": LOCAL_CPUS, "object_store_memory": LOCAL_STORE_BYTES, "include_dashboard": False}
    # One below, since Ray opens its own folder to everybody.
    ray.init(address="local", _temp_dir=str(folder / "r"), **{**own, **how})
