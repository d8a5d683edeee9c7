"""An engine that prints."""

from __future__ import annotations


class Talking:
    def say(self, text: str) -> None:
        print(text, flush=True)
