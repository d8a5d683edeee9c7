"""Channel is what a peer's outgoing and incoming calls share: the present link, the loop, and the waiters."""

from __future__ import annotations

import asyncio
from asyncio.events import _get_running_loop
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from rolecall.transport import codec
from rolecall.transport.frames import pack
from rolecall.transport.link import Link
from rolecall.transport.session import messages
from rolecall.transport.session.messages import Body, Sending
from rolecall.transport.threads import beside


class Channel:
    """A connection that outlives its links: at most one link at a time.

    Attributes:
        name: The other side's name, for messages.
        context: Handed to the codec's decoders.
        link: The present link. Replaced on the loop's thread, while the machines are detached.
    """

    __slots__ = ("context", "link", "loop", "name")

    def __init__(self, name: str, loop: asyncio.AbstractEventLoop, context: Any) -> None:
        self.name, self.loop, self.context = name, loop, context
        self.link: Link | None = None

    @property
    def written(self) -> int:
        """Bytes sent on the present link that are in the kernel."""
        link = self.link
        return 0 if link is None else link.written

    def call_soon(self, fn: Callable[..., object], *args: Any) -> None:
        """Calls `fn` on the loop's thread, at once if this is that thread. Does nothing once the loop is closed."""
        if _get_running_loop() is self.loop:
            fn(*args)
            return
        with suppress(RuntimeError):  # the loop is closed; nothing of this peer runs there any more
            self.loop.call_soon_threadsafe(fn, *args)

    def report(self, what: str, exc: Exception) -> None:
        """Passes an error that no caller receives to the loop's exception handler."""
        self.loop.call_exception_handler({"message": f"{self.name}: {what} failed", "exception": exc})

    def drop(self, bodies: Sequence[Body]) -> None:
        """Decodes and drops values that arrived for nobody. Any thread.

        Values may hold handles: decoding one takes ownership of its shards, and dropping it frees them.
        """
        if bodies and self.context is not None:
            beside(partial(_decode, bodies, self.context), "rolecall-drop")


def send(link: Link | None, sendings: Sequence[Sending]) -> None:
    """Sends what a machine returned, on the link that was present at that moment. Any thread."""
    if link is None:
        return
    for message, buffers, tracked in sendings:
        position = link.send(pack(messages.encode(message), buffers))
        if tracked is not None and (sent := tracked.sent) is not None:
            tracked.sent = sent[0], position


def _decode(bodies: Sequence[Body], context: Any) -> None:
    for header, buffers in bodies:
        with suppress(Exception):  # its type cannot be imported here, for instance
            codec.decode(header, buffers, context=context)
