"""Waits until a program is ready. A listener on its port counts only when a process of the worker holds it."""

import asyncio
import re
from functools import partial

from rolecall.guard import logs
from rolecall.guard.descendants import Descendants
from rolecall.guard.sockets import holders, listener_inodes
from rolecall.guard.table import Record
from rolecall.protocol.guard import Ready
from rolecall.protocol.guard_config import GuardConfig
from rolecall.transport.files import read_within
from rolecall.transport.http.client import ask

SETTLE_S = 0.3  # a program that cannot start (wrong arguments, a missing file) ends within this
_FIRST_POLL_S = 0.01
_LAST_POLL_S = 0.25
_HTTP_S = 5.0


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
    record.waits_for = await asyncio.to_thread(_why_no_listener, record)
    if record.waits_for:
        return False
    record.mark("connected")
    record.waits_for = f"it listens, but {ready.http} does not answer with a status below 400"
    return not ready.http or await answers(host, record.ports[0], ready.http, _HTTP_S)


async def _log_matches(record: Record, pattern: str) -> bool:
    data = await read_within(logs.TAIL_S, partial(logs.read_from, record.log_path, record.log_start), b"")
    return re.search(pattern, data.decode(errors="replace"), re.MULTILINE) is not None


def _why_no_listener(record: Record) -> str:
    """Why the worker does not listen on its first port; empty if it does, or if that cannot be read."""
    assert record.process is not None
    port = record.ports[0]
    inodes = listener_inodes(port, record.process.pid)
    if not inodes:
        return f"no process listens on port {port}"
    owned = Descendants().owned(record)
    found = holders(inodes, [process.pid for process in owned])
    return "" if found is None or found else f"a process that is not part of the worker listens on port {port}"


async def answers(host: str, port: int, path: str, limit_s: float) -> bool:
    """Whether a program answers a path with a status below 400, within a time."""
    try:
        async with asyncio.timeout(limit_s):
            return (await ask(host, port, "GET", path, status_only=True)).status < 400
    except OSError:  # a TimeoutError is one
        return False
