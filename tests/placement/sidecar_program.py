"""A sidecar for the tests: it does what it is told."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from rolecall.placement.sidecar import Post


def main() -> None:
    post, never, stuck = Post(int(sys.argv[1])), threading.Event(), threading.Event()

    def order(method: str, facts: dict[str, Any]) -> Callable[[], Any]:
        if method == "hang":
            stuck.set()
        orders: dict[str, Callable[[], Any]] = {
            "echo": lambda: facts["value"],
            "say": lambda: post.say(facts["key"], facts["value"]),
            "crash": lambda: (print(facts["words"], flush=True), os._exit(3)),
            "nothing": never.wait,
            "fail": lambda: 1 // 0,
            "hang": lambda: None,
        }
        return orders[method]

    post.serve(order, bool)
    post.say("over", None)  # to nobody
    if stuck.is_set():
        time.sleep(600)
    print("ended well", flush=True)


if __name__ == "__main__":
    main()
