"""A run's Ray driver: the process that talks to Ray for the controller, its sidecar.

Ray ends the process of a driver whose head is lost, takes over its signals and prints on its output; and its calls may
block. None of that must happen to a controller. When the controller is gone, so is all that was placed: Ray ends what
a driver leaves behind.
"""

from __future__ import annotations

import contextlib
import gc
import os
import secrets
import shutil
import signal
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from rolecall.placement import guard_process
from rolecall.placement.ray import guard as ray_guard
from rolecall.placement.ray import messages
from rolecall.placement.ray.actors import STOP_S, RoleActors
from rolecall.placement.sidecar import SidecarServer, beside
from rolecall.protocol import ray_driver as protocol
from rolecall.protocol.ray_driver import JoinCluster, Joined, OfGuard, OfRole, PlaceRole, RoleNews
from rolecall.transport import ray_internals
from rolecall.transport.address import dial_host

LOCAL_CPUS = 1024  # of a cluster of our own: on one machine cores set thread counts and keep no worker waiting
LOCAL_STORE_BYTES = 1 << 30
CALL_S = 5.0
SILENCE_S = 15.0
PAUSE_S = 0.5


def main() -> None:
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    driver = Driver(SidecarServer(int(sys.argv[1])))
    try:
        driver.serve()
    finally:
        driver.close()


class Driver:
    """Answers what the controller asks of Ray; `place` and `release` are answered by news of `RoleActors`."""

    def __init__(self, server: SidecarServer) -> None:
        self._server = server
        self._roles: dict[str, RoleActors] = {}
        self._folder = "/nonexistent"
        self._thread = ThreadPoolExecutor(1)  # processes that Ray starts die with the thread that has started them
        server.handle(protocol.JOIN, lambda wanted: self._thread.submit(self._join, wanted).result)
        server.handle(protocol.COUNT_NODES, lambda wanted: _count_nodes)
        server.handle(protocol.PLACE, self._place)
        server.handle(protocol.LOOK, lambda wanted: partial(self._look, wanted))
        server.handle(protocol.RELEASE, self._release)

    def serve(self) -> None:
        """Until the controller is gone."""
        self._server.serve(self._remove_folder)

    def _join(self, wanted: JoinCluster) -> Joined:
        self._folder = wanted.folder
        gc.disable()  # hardly anything of what Ray's import makes is garbage, and looking for it takes a sixth of it
        try:
            return join(wanted)
        except Exception as e:
            return Joined(error=type(e).__name__, reason=str(e))
        finally:
            gc.enable()

    def _place(self, wanted: PlaceRole) -> Callable[[], None]:
        self._roles[wanted.name] = RoleActors(wanted, self._server)
        return self._roles[wanted.name].place

    def _look(self, wanted: OfGuard) -> str:
        return messages.or_error(self._roles[wanted.name].look, wanted.ordinal) or ""

    def _release(self, wanted: OfRole) -> Callable[[], None]:
        if wanted.name not in self._roles:  # its order never came
            return partial(self._server.say, wanted.name, RoleNews(left=[]))
        return self._roles[wanted.name].release

    def close(self) -> None:
        """Its guards end too and clean up, for which Ray gives them no time."""
        import ray

        releases = [beside(role.release) for role in self._roles.values() if role.news.left is None]
        for release in releases:
            release.join(STOP_S)
        self._thread.submit(ray.shutdown, wait_for_processes=True).result()
        self._remove_folder()

    def _remove_folder(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)


def _count_nodes() -> int:
    """Of which the head has to be asked, for a while, since it may have been restarted. 0: it said nothing."""
    import ray

    deadline = time.monotonic() + SILENCE_S
    while time.monotonic() < deadline:
        with contextlib.suppress(Exception):
            return len(ray.nodes())
        time.sleep(PAUSE_S)
    return 0


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


if __name__ == "__main__":
    main()
