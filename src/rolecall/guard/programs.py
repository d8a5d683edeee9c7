"""Programs as the guard meets them: when one is ready, whether it still answers, and what it is told over HTTP.

A listener on a program's port counts only when a process of the worker holds it.
"""

import asyncio
import os
import re
import time
from collections.abc import Callable, Coroutine, Iterable
from contextlib import suppress
from functools import partial
from typing import Any

import msgspec

from rolecall.errors import EngineCallError, RPCConnectionError
from rolecall.guard import logs
from rolecall.guard.descendants import Descendants
from rolecall.guard.proc import numeric_entries, read_text
from rolecall.guard.table import Record, State
from rolecall.protocol.guard import Ready
from rolecall.protocol.guard_config import GuardConfig
from rolecall.protocol.programs import may_host_engines
from rolecall.transport.files import read_within
from rolecall.transport.http.client import NOT_SERVED, ErrorBody, ask
from rolecall.transport.threads import in_thread

SETTLE_S = 0.3  # a program that cannot start (wrong arguments, a missing file) ends within this
HEALTH_PAUSE_S = 2.0  # between two questions to one program
HEALTH_S = 10.0
POST_S = 10.0
_FIRST_POLL_S = 0.01
_LAST_POLL_S = 0.25
_READY_S = 5.0
_LISTEN = "0A"


async def wait_until_ready(record: Record, config: GuardConfig) -> None:
    """Returns when the program of a record is ready. The caller watches for the program's end and the deadline."""
    ready = record.spec.ready
    if ready is None or not (ready.http or ready.tcp or ready.log):
        await asyncio.sleep(SETTLE_S)
        return
    pause = _FIRST_POLL_S
    while not await _is_ready(record, ready, config.ip):
        await asyncio.sleep(pause)
        pause = min(pause * 1.5, _LAST_POLL_S)


async def _is_ready(record: Record, ready: Ready, host: str) -> bool:
    if ready.log and not await _log_matches(record, ready.log):
        record.waits_for = f"no line of its log matches {ready.log!r}"
        return False
    if not (ready.http or ready.tcp):
        return True
    record.waits_for = await in_thread(_why_no_listener, record)
    if record.waits_for:
        return False
    record.mark("connected")
    record.waits_for = f"it listens, but {ready.http} does not answer with a status below 400"
    return not ready.http or await _answers(host, record.ports[0], ready.http, _READY_S)


async def _log_matches(record: Record, pattern: str) -> bool:
    data = await read_within(logs.TAIL_S, partial(logs.read_from, record.log_path, record.log_start), b"")
    return re.search(pattern, data.decode(errors="replace"), re.MULTILINE) is not None


def _why_no_listener(record: Record) -> str:
    """Why the worker does not listen on its first port; empty if it does, or if that cannot be read."""
    assert record.process is not None
    port = record.ports[0]
    listeners = _listeners(port, record.process.pid)
    if not listeners:
        return f"no process listens on port {port}"
    with suppress(PermissionError):
        if not _hold(listeners, [process.pid for process in Descendants().owned(record)]):
            return f"a process that is not part of the worker listens on port {port}"
    return ""


def _listeners(port: int, pid: int) -> set[str]:
    """The sockets that listen on a port in the network namespace of a process, as descriptors name them."""
    found = set()
    for name in ("tcp", "tcp6"):
        for line in read_text(f"/proc/{pid}/net/{name}").splitlines()[1:]:
            fields = line.split()
            if fields[3] == _LISTEN and int(fields[1].rpartition(":")[2], 16) == port:
                found.add(f"socket:[{fields[9]}]")
    return found


def _hold(sockets: set[str], pids: Iterable[int]) -> bool:
    """Whether one of the processes holds one of the sockets.

    Raises:
        PermissionError: The descriptors of a process cannot be read.
    """
    for pid in pids:
        with suppress(FileNotFoundError):
            for number in numeric_entries(f"/proc/{pid}/fd"):
                with suppress(FileNotFoundError):
                    # A path object for each descriptor doubles the cost.
                    if os.readlink(f"/proc/{pid}/fd/{number}") in sockets:  # noqa: PTH115
                        return True
    return False


async def _answers(host: str, port: int, path: str, limit_s: float) -> bool:
    """Whether a program answers a path with a status below 400, within a time."""
    try:
        async with asyncio.timeout(limit_s):
            return (await ask(host, port, "GET", path, status_only=True)).status < 400
    except OSError:  # a TimeoutError is one
        return False


class HealthChecks:
    """Asks programs that were ready by an HTTP path whether they still answer there, each one question at a time.

    It counts the answers of each in its record and does not say what silence means.
    """

    def __init__(self, host: str, spawn_task: Callable[[Coroutine[Any, Any, Any]], None]) -> None:
        self._host, self._spawn_task = host, spawn_task
        self._due: dict[Record, float] = {}  # when each is asked next

    def poll(self, living: list[Record]) -> None:
        """Asks those that are due; returns at once."""
        now = time.monotonic()
        self._due = {record: self._due.get(record, 0.0) for record in living if _health_path(record)}
        for record in [record for record, due in self._due.items() if due <= now]:
            self._due[record] = float("inf")
            self._spawn_task(self._ask(record))

    async def _ask(self, record: Record) -> None:
        record.answers = record.answers or 0
        record.answers += await _answers(self._host, record.ports[0], _health_path(record), HEALTH_S)
        if record in self._due:
            self._due[record] = time.monotonic() + HEALTH_PAUSE_S


def _health_path(record: Record) -> str:
    """The path by which a program was ready; empty for others."""
    ready = record.spec.ready if record.state is State.READY and record.peer is None else None
    return (ready.http or "") if ready is not None else ""


async def post(record: Record, host: str, path: str, value: dict[str, Any]) -> None:
    """Posts to a program that may host engines, and is ready or was seen to be; one without such a route is left alone.

    Raises:
        EngineCallError: It answered with an error.
        RPCConnectionError: It did not answer.
    """
    if not may_host_engines(record.spec.ready) or record.peer is not None or record.state is State.ENDING:
        return
    try:
        async with asyncio.timeout(POST_S):
            answer = await ask(host, record.ports[0], "POST", path, msgspec.json.encode(value))
    except TimeoutError as e:
        raise RPCConnectionError(record.worker_id, f"POST {path} had no answer within {POST_S:g} s") from e
    except OSError as e:
        raise RPCConnectionError(record.worker_id, f"POST {path}: {str(e) or type(e).__name__}") from e
    if answer.status >= 300 and answer.status not in NOT_SERVED:
        body = ErrorBody.of(answer)
        raise EngineCallError(record.worker_id, path, body.type, body.error, body.traceback)
