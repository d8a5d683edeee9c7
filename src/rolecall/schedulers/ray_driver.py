"""A run's Ray driver: the process that talks to Ray for the controller, its sidecar.

Ray ends the process of a driver whose head is lost, takes over its signals and prints on its output; and its calls may
block. None of that must happen to a controller. When the controller is gone, so is all that was placed: Ray ends what
a driver leaves behind.
"""

from __future__ import annotations

import shutil
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from rolecall.schedulers import ray_words
from rolecall.schedulers.ray_actors import STOP_S, RoleActors, Say
from rolecall.schedulers.ray_joining import join
from rolecall.schedulers.sidecar import Post


def main() -> None:
    post = Post(int(sys.argv[1]))
    orders = post.orders()
    hello = next(orders, None)
    if hello is None:
        return  # nobody is there any more
    post.last = lambda: shutil.rmtree(hello["folder"], ignore_errors=True)
    try:
        found = join(hello)
    except Exception as e:
        post.say("refused", [type(e).__name__, str(e)])
    else:
        post.say("joined", found)
        _obey(orders, post.say)
    finally:
        import ray

        ray.shutdown(wait_for_processes=True)
        post.last()


def _obey(orders: Iterator[dict[str, Any]], say: Say) -> None:
    """Carries out orders, each beside the others, since any may have to wait for Ray."""
    roles: dict[str, RoleActors] = {}
    try:
        for order in orders:
            if order["do"] == "place":
                roles[order["name"]] = RoleActors(order, say)
            _beside(_carry_out, order, roles, say)
    finally:  # the controller has died; its guards end too and clean up, for which Ray gives them no time
        releases = [_beside(role.release) for role in roles.values() if not role.released.is_set()]
        for release in releases:
            release.join(STOP_S)


def _carry_out(order: dict[str, Any], roles: Mapping[str, RoleActors], say: Say) -> None:
    import ray

    match order:
        case {"do": "ping", "reply": reply}:
            say(reply, len(ray.nodes()))  # which the head has to be asked for
        case {"do": "place", "name": name}:
            roles[name].place()
        case {"do": "look", "name": name, "ordinal": ordinal, "reply": reply}:
            say(reply, ray_words.in_words(roles[name].look, ordinal))  # who asks waits, whatever Ray does
        case {"do": "release", "name": name} if name in roles:
            roles[name].release()
        case {"do": "release", "name": name}:
            say(f"released {name}", [])  # its order never came


def _beside(work: Callable[..., None], *args: Any) -> threading.Thread:
    thread = threading.Thread(target=work, args=args, daemon=True)
    thread.start()
    return thread


if __name__ == "__main__":
    main()
