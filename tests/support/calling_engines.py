"""An engine whose calls take a while, run side by side, fail, and end its process."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from rolecall import Role


class Calling:
    def __init__(self, worker_id: str) -> None:
        self._worker_id = worker_id
        self._running, self._willing = 0, True

    def where(self) -> str:
        return self._worker_id

    def environment(self) -> dict[str, str]:
        return dict(os.environ)

    def refuse_to_end(self) -> None:
        self._willing = False

    def destroy(self) -> None:
        if not self._willing:
            raise ValueError("not yet")

    def echo(self, value: Any) -> Any:
        return value

    def repeat(self, value: Any, times: int) -> dict[str, Any]:
        return {"x": [value] * times}

    def say(self, lines: list[str]) -> None:
        print(*lines, sep="\n", flush=True)

    def die(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def sleep(self, seconds: float) -> float:
        time.sleep(seconds)
        return seconds

    def divide(self, x: float, by: float) -> float:
        return x / by

    async def divide_slowly(self, x: float, seconds: float) -> float:
        await asyncio.sleep(seconds)
        return x / x

    def from_a_pool(self, x: float) -> Future[float]:
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(self.divide, x, 2)

    async def from_a_pool_async(self, x: float) -> Future[float]:
        return self.from_a_pool(x)

    async def forever(self) -> None:
        await asyncio.Event().wait()

    def an_error(self) -> ValueError:
        return ValueError("a result")

    async def count(self, value: int) -> tuple[int, int]:
        """The value, and how many of these calls run here at the same time."""
        self._running += 1
        try:
            await asyncio.sleep(0.01)
            return value, self._running
        finally:
            self._running -= 1

    async def count_or_die(self, value: int, mortal: str) -> int:
        """The value; the third call on the mortal worker is its last."""
        self._running += 1
        await asyncio.sleep(0.01)
        if mortal == self._worker_id and self._running >= 3:
            self.die()
        return value


class Moody(Calling):
    """Made as a file says: `fail` is refused, `wait` waits until the file is gone."""

    def __init__(self, worker_id: str, mood: str) -> None:
        super().__init__(worker_id)
        file = Path(mood)
        said = file.read_text() if file.exists() else ""
        if said == "fail":
            raise ValueError("not today")
        if said == "wait":
            file.write_text("waiting")
            while file.exists():
                time.sleep(0.01)


def create(role: Role) -> None:
    """One on each worker, which knows whose it is."""
    for worker in role:
        worker.create_engine(Calling, worker.id)
