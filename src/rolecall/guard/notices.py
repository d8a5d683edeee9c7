"""Forwards notices from the guard's standard input to the controller, for instance a cluster's warnings."""

import asyncio
import logging
import os
from collections.abc import Callable

import msgspec

from rolecall.protocol.events import Notice

STDIN = 0
LONGEST = 64 << 10

_log = logging.getLogger(__name__)


async def forward_notices(notify: Callable[[Notice], None], fd: int = STDIN) -> None:
    """Passes notices on, one line of JSON each, until the end of the input."""
    reader = asyncio.StreamReader(LONGEST)
    protocol = asyncio.StreamReaderProtocol(reader)
    pipe = os.fdopen(os.dup(fd), "rb", buffering=0)  # some event loops close what they are given
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, pipe)
    try:
        async for line in reader:
            if line.endswith(b"\n"):
                _forward(notify, line)
    except (OSError, ValueError) as error:  # ValueError: a line that is too long
        _log.warning("no further notices: %s", error)
    finally:
        transport.close()


def _forward(notify: Callable[[Notice], None], line: bytes) -> None:
    try:
        notify(msgspec.json.decode(line, type=Notice))
    except msgspec.DecodeError as error:
        _log.warning("ignored on stdin: not a notice: %r: %s", line[:200], error)
