"""Engines whose exceptions, logs and processes are not what anybody expects."""

from __future__ import annotations

import ctypes
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from rolecall import current_worker

MIB = 1 << 20


class RaisesWhenTold(Exception):
    """Telling it raises."""

    def __init__(self, raised: type[BaseException]) -> None:
        super().__init__()
        self._raised = raised

    def __str__(self) -> str:
        raise self._raised("from __str__")

    __repr__ = __str__


KINDS: list[type[BaseException]] = [SystemExit, KeyboardInterrupt, RecursionError, GeneratorExit]


class Hostile:
    def raise_odd(self, kind: int) -> None:
        raise RaisesWhenTold(KINDS[kind])

    async def raise_odd_async(self, kind: int) -> None:
        raise RaisesWhenTold(KINDS[kind])

    def raise_odd_later(self, kind: int) -> Iterator[int]:
        yield 1
        raise RaisesWhenTold(KINDS[kind])

    def raise_plain(self, kind: int) -> None:
        raise KINDS[kind]("as such")

    async def raise_plain_async(self, kind: int) -> None:
        raise KINDS[kind]("as such")

    def raise_large(self, mib: int) -> None:
        raise ValueError("begins here " + "x" * (mib * MIB) + " ends here")

    def answer(self) -> int:
        return 42

    def run_another_program(self) -> None:
        os.execv("/bin/sleep", ["sleep", "1000"])

    def run_another_program_beside_a_child(self) -> None:
        """The child is none of Python's, and has the control channel."""
        libc = ctypes.CDLL(None)
        if libc.fork() == 0:
            libc.pause()
        self.run_another_program()

    def close_all_files(self) -> None:
        os.closerange(3, 4096)
        time.sleep(1000)

    def put_fifo_for_log(self) -> None:
        """From here on whoever opens this worker's log waits for ever."""
        log = Path("/proc/self/fd/1").readlink()
        log.unlink()
        os.mkfifo(log)

    def make(self) -> Any:
        return np.ones(8)

    def total(self, array: Any) -> float:
        return float(array.sum())

    def die(self) -> None:
        os._exit(3)


class NeverMade:
    """Its constructor does not return on the second worker."""

    def __init__(self) -> None:
        if current_worker().index == 1:
            threading.Event().wait()

    def answer(self) -> int:
        return 42


class NeverDestroyed:
    """It can be made; its `destroy()` does not return on the second worker."""

    def destroy(self) -> None:
        NeverMade()


class HostileConstructor:
    def __init__(self, kind: int) -> None:
        raise RaisesWhenTold(KINDS[kind])
