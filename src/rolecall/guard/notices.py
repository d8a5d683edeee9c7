"""Forwards notices from the guard's standard input to the controller, for instance a cluster's warnings."""

import logging
import os
from asyncio import AbstractEventLoop
from collections.abc import Callable

import msgspec

from rolecall.protocol.events import Notice

STDIN = 0
LONGEST = 64 << 10

_log = logging.getLogger(__name__)


class Notices:
    """Reads notices from standard input, one line of JSON each, and passes them on until the end of the input."""

    def __init__(self, loop: AbstractEventLoop, notify: Callable[[Notice], None], fd: int = STDIN) -> None:
        self._loop, self._notify, self._fd = loop, notify, fd
        self._left = b""

    def open(self) -> None:
        os.set_blocking(self._fd, False)
        self._loop.add_reader(self._fd, self._read)

    def close(self) -> None:
        self._loop.remove_reader(self._fd)

    def _read(self) -> None:
        try:
            chunk = os.read(self._fd, LONGEST)
        except BlockingIOError:
            return
        except OSError as error:
            _log.warning("no further notices: %s", error)
            chunk = b""
        *lines, self._left = (self._left + chunk).split(b"\n")
        for line in lines:
            self._notice(line)
        if not chunk or len(self._left) > LONGEST:
            self.close()

    def _notice(self, line: bytes) -> None:
        try:
            notice = msgspec.json.decode(line, type=Notice)
        except msgspec.DecodeError as error:
            _log.warning("ignored on stdin: not a notice: %r: %s", line[:200], error)
        else:
            self._notify(notice)
