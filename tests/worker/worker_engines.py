"""Engines by which the tests of the engine host see what it does."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rolecall.tensors.store import Store
from rolecall.worker.engines import Engines


class Turns:
    """Plain methods that say how many of them ran at the same time, and on how many threads."""

    def __init__(self) -> None:
        self.inside = self.most = self.ran = 0
        self.threads: set[int] = set()

    def turn(self, gate: str) -> None:
        """Waits inside for a file."""
        self.inside += 1
        self.ran += 1
        self.most = max(self.most, self.inside)
        self.threads.add(threading.get_ident())
        while not Path(gate).exists():
            time.sleep(0.005)
        self.inside -= 1

    async def seen(self) -> dict[str, int]:
        """Answers also while a turn is taken."""
        return {"inside": self.inside, "most": self.most, "ran": self.ran, "threads": len(self.threads)}


class Items:
    """Streams that end in other ways than by coming to their end."""

    def __init__(self) -> None:
        self.made = 0

    def then_fails(self, count: int) -> Iterator[int]:
        yield from range(count)
        raise ValueError("no more of it")

    def blocks(self) -> Iterator[str]:
        """Items that fill a socket soon."""
        while True:
            self.made += 1
            yield "x" * (1 << 20)

    async def how_many(self) -> int:
        return self.made


class MutedError(Exception):
    """An error that cannot say what it is."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


class Odd:
    """Raises what is hard to report, and is slow to be made."""

    def __init__(self, gate: str = "") -> None:
        if gate:
            Path(gate).with_suffix(".begun").touch()
        while gate and not Path(gate).exists():
            time.sleep(0.005)

    def mute(self) -> None:
        raise MutedError

    def surrogates(self) -> None:
        raise ValueError("half a character: \ud800")

    def greet(self) -> str:
        return "hello"


class Saboteur:
    """Plants bugs into the worker that hosts it."""

    def plant(self, kind: str) -> None:
        """From now on looking up the method `trip` is a bug, and so is clearing shards."""
        error = {"KeyError": KeyError, "TypeError": TypeError, "ValueError": ValueError}[kind]
        found = Engines.method

        def method(engines: Engines, engine_name: str, name: str) -> Any:
            if name == "trip":
                raise error("planted")
            return found(engines, engine_name, name)

        def delete(store: Store, ids: Any) -> Any:
            raise error("planted")

        setattr(Engines, "method", method)  # noqa: B010
        setattr(Store, "delete", delete)  # noqa: B010

    def trip(self) -> str:
        return "nothing is planted"
