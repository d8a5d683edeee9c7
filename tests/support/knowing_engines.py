"""An engine that tells what it knows of its worker, from everywhere that its code runs."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from typing import Any

import rolecall

SET_UP: list[tuple[str, int]] = []  # workers that were set up, and in which thread


def set_up() -> None:
    SET_UP.append((rolecall.current_worker().id, threading.get_ident()))


def fail_to_set_up() -> None:
    raise ValueError("no licence")


class Knowing:
    def __init__(self) -> None:
        self._made_in = rolecall.current_worker().id
        self._drawn = random.random()

    def facts(self) -> dict[str, Any]:
        worker = rolecall.current_worker()
        return {name: getattr(worker, name) for name in worker.__dataclass_fields__ if not name.startswith("_")}

    def itself(self) -> object:
        return rolecall.current_worker()

    async def itself_on_the_loop(self) -> object:
        return rolecall.current_worker()

    def thread(self) -> int:
        return threading.get_ident()

    def set_up_in(self) -> list[int]:
        """In which threads its worker was set up."""
        return [thread for worker, thread in SET_UP if worker == self._made_in]

    def drawn(self) -> float:
        return self._drawn

    def made_in(self) -> str:
        return self._made_in

    async def on_the_loop(self) -> str:
        return rolecall.current_worker().id

    def streamed(self) -> Iterator[str]:
        yield rolecall.current_worker().id

    def in_a_thread(self) -> str:
        seen: list[str] = []
        thread = threading.Thread(target=lambda: seen.append(rolecall.current_worker().id))
        thread.start()
        thread.join()
        return seen[0]

    def more_ports(self, count: int) -> list[int]:
        return rolecall.current_worker().alloc_ports(count)

    async def more_ports_on_the_loop(self, count: int) -> list[int]:
        return await rolecall.current_worker().aalloc_ports(count)

    async def wrong(self) -> list[int]:
        return rolecall.current_worker().alloc_ports(1)
