"""Engines that the command line's tests look at."""

from __future__ import annotations

import os
import time


class Chatter:
    """Prints, works and leaves on request."""

    def say(self, text: str) -> None:
        print(text, flush=True)

    def work(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            pass

    def wait(self) -> None:
        time.sleep(3600)

    def leave(self, code: int) -> None:
        os._exit(code)
