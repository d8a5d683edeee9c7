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
from typing import Any

from rolecall.placement.ray import words as ray_words
from rolecall.placement.ray.actors import STOP_S, RoleActors
from rolecall.placement.ray.joining import join
from rolecall.placement.sidecar import Post, beside

SILENCE_S = 15.0
PAUSE_S = 0.5


def main() -> None:
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    driver = Driver(Post(int(sys.argv[1])))
    try:
        driver.serve()
    finally:
        driver.close()


class Driver:
    """What the controller orders and asks.

    `join` answers with what was found, or `refused` with an error's kind and words; `ping` with the number of nodes;
    `look` with what there is to see of a guard's end. `place` and `release` are answered by news of `RoleActors`.
    """

    def __init__(self, post: Post) -> None:
        self._post = post
        self._roles: dict[str, RoleActors] = {}
        self._folder = "/nonexistent"
        self._thread = ThreadPoolExecutor(1)  # processes that Ray starts die with the thread that has started them

    def serve(self) -> None:
        """Until the controller is gone."""
        self._post.serve(self._order, self._remove_folder)

    def _order(self, method: str, facts: dict[str, Any]) -> Callable[[], Any]:
        if method == "join":
            return self._thread.submit(self._join, facts).result
        if method == "ping":
            return _count_nodes
        name = facts["name"]
        if method == "place":
            self._roles[name] = RoleActors(facts, self._post.say)
            return self._roles[name].place
        if method == "look":
            return partial(ray_words.in_words, self._roles[name].look, facts["ordinal"])
        if name not in self._roles:  # its order never came
            return partial(self._post.say, f"released {name}", [])
        return self._roles[name].release

    def _join(self, hello: dict[str, Any]) -> dict[str, Any]:
        self._folder = hello["folder"]
        try:
            return join(hello)
        except Exception as e:
            return {"refused": [type(e).__name__, str(e)]}

    def close(self) -> None:
        """Its guards end too and clean up, for which Ray gives them no time."""
        import ray

        releases = [beside(role.release) for role in self._roles.values() if not role.released.is_set()]
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
