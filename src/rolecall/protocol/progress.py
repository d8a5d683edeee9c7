"""The progress page: one page of a file that a worker maps and writes and its guard reads, without a call.

Layout: three little-endian u64: the heartbeat's counter, calls begun, calls ended.
"""

import mmap
import struct
from typing import NamedTuple

PAGE_BYTES = 4096
_LAYOUT = struct.Struct("<QQQ")
SIZE = _LAYOUT.size


class Counters(NamedTuple):
    """What a worker counts. A heartbeat of 0 means that it does not write the page."""

    heartbeat: int = 0
    begun: int = 0
    ended: int = 0


def write(page: mmap.mmap, heartbeat: int, begun: int, ended: int) -> None:
    """Puts the counters into a page."""
    _LAYOUT.pack_into(page, 0, heartbeat, begun, ended)


def parse(data: bytes) -> Counters:
    """The counters in the first `SIZE` bytes of a page; zeros when it is shorter, since a worker may have cut it."""
    return Counters(*_LAYOUT.unpack(data[:SIZE])) if len(data) >= SIZE else Counters()
