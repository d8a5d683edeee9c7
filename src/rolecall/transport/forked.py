"""What a forked child must not keep of this process: it may outlive it, and nobody would notice that this one died."""

from __future__ import annotations

import os
import socket
from io import FileIO
from weakref import WeakSet

_held: WeakSet[socket.socket | FileIO] = WeakSet()


def close_in_forks(held: socket.socket | FileIO) -> None:
    """Has `held` closed in every child that is forked from here on; in this process it stays open."""
    _held.add(held)


def _close_all() -> None:
    for held in list(_held):
        if isinstance(held, FileIO):
            held.close()
        elif (number := held.detach()) >= 0:  # an event loop that uses a socket defers its `close`
            os.close(number)


os.register_at_fork(after_in_child=_close_all)
