"""A run's Ray driver: the process that talks to Ray for the controller, its sidecar.

Ray ends the process of a driver whose head is lost, takes over its signals and prints on its output; and its calls may
block. None of that must happen to a controller. When the controller is gone, so is all that was placed: Ray ends what
a driver leaves behind.
"""

from __future__ import annotations

import contextlib
import shutil
import signal
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from rolecall.placement.ray import messages
from rolecall.placement.ray.actors import STOP_S, RoleActors
from rolecall.placement.ray.joining import join
from rolecall.placement.sidecar import SidecarServer, beside
from rolecall.protocol import ray_driver as protocol
from rolecall.protocol.ray_driver import JoinCluster, Joined, OfGuard, OfRole, PlaceRole, RoleNews

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
        try:
            return join(wanted)
        except Exception as e:
            return Joined(error=type(e).__name__, reason=str(e))

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


if __name__ == "__main__":
    main()
