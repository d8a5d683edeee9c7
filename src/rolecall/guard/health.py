"""Asks programs that were ready by an HTTP path whether they still answer there. It does not say what silence means."""

import time
from collections.abc import Callable, Coroutine
from typing import Any

from rolecall.guard.readiness import answers
from rolecall.guard.table import Record, State

PAUSE_S = 2.0  # between two questions to one program
ANSWER_S = 10.0


class HealthChecks:
    """Counts the answers of each program in its record. Each is asked one question at a time."""

    def __init__(self, host: str, spawn_task: Callable[[Coroutine[Any, Any, Any]], None]) -> None:
        self._host, self._spawn_task = host, spawn_task
        self._due: dict[Record, float] = {}  # when each is asked next

    def poll(self, living: list[Record]) -> None:
        """Asks those that are due; returns at once."""
        now = time.monotonic()
        paths = {record: path for record in living if (path := _path(record))}
        self._due = {record: self._due.get(record, 0.0) for record in paths}
        for record in [record for record, due in self._due.items() if due <= now]:
            self._due[record] = float("inf")
            self._spawn_task(self._ask(record, paths[record]))

    async def _ask(self, record: Record, path: str) -> None:
        record.answers = record.answers or 0
        record.answers += await answers(self._host, record.ports[0], path, ANSWER_S)
        if record in self._due:
            self._due[record] = time.monotonic() + PAUSE_S


def _path(record: Record) -> str:
    """The path by which a program was ready; empty for others."""
    ready = record.spec.ready if record.state is State.READY and record.peer is None else None
    return (ready.http or "") if ready is not None else ""
