"""A sidecar for the tests: it does what it is asked."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable

from rolecall.placement.sidecar import SidecarServer
from tests.placement.sidecar_requests import CRASH, ECHO, FAIL, HANG, NOTHING, SAY, Said, Text


def main() -> None:
    server, never, stuck = SidecarServer(int(sys.argv[1])), threading.Event(), threading.Event()

    def hang(wanted: object) -> Callable[[], Text]:
        stuck.set()
        return Text

    def say(wanted: Said) -> Callable[[], Text]:
        server.say(wanted.name, Text(text=wanted.text))
        return Text

    def crash(wanted: Text) -> Callable[[], None]:
        print(wanted.text, flush=True)
        os._exit(3)

    def wait(wanted: object) -> Callable[[], None]:
        def wait_for_ever() -> None:
            never.wait()

        return wait_for_ever

    def fail(wanted: object) -> Callable[[], None]:
        def divide() -> None:
            raise ZeroDivisionError("division by zero")

        return divide

    server.handle(ECHO, lambda wanted: lambda: wanted)
    server.handle(SAY, say)
    server.handle(CRASH, crash)
    server.handle(NOTHING, wait)
    server.handle(FAIL, fail)
    server.handle(HANG, hang)
    server.serve(bool)
    server.say("over", Text())  # to nobody
    if stuck.is_set():
        time.sleep(600)
    print("ended well", flush=True)


if __name__ == "__main__":
    main()
