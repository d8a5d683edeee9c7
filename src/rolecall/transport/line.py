"""Line is what both halves of a peer stand on: the present link, the loop that events are handled on, and who waits."""

from __future__ import annotations

import asyncio
from asyncio.events import _get_running_loop
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from rolecall.transport import codec
from rolecall.transport.frames import pack
from rolecall.transport.link import Link
from rolecall.transport.session import messages
from rolecall.transport.session.messages import Body
from rolecall.transport.session.sending import Sending
from rolecall.transport.waiting import Wakers


class Line:
    """The link that a peer uses at present.

    Attributes:
        name: The other side's name, for messages.
        context: Handed to the codec's decoders.
        link: The present link. Replaced on the loop's thread, between the detaching and attaching of the machines.
    """

    __slots__ = ("context", "link", "loop", "name", "wakers")

    def __init__(self, name: str, loop: asyncio.AbstractEventLoop, context: Any) -> None:
        self.name, self.loop, self.context = name, loop, context
        self.link: Link | None = None
        self.wakers = Wakers()

    @property
    def written(self) -> int:
        """Bytes that the kernel has taken of what was sent on the present link."""
        link = self.link
        return 0 if link is None else link.written

    def soon(self, fn: Callable[..., object], *args: Any) -> None:
        """Calls `fn` on the loop's thread: at once, when this is it. Does nothing once the loop is closed."""
        if _get_running_loop() is self.loop:
            fn(*args)
            return
        with suppress(RuntimeError):  # the loop is closed; nothing of this peer runs there any more
            self.loop.call_soon_threadsafe(fn, *args)

    def report(self, what: str, exc: Exception) -> None:
        """Tells the loop's handler of an error that nobody waits for."""
        self.loop.call_exception_handler({"message": f"{self.name}: {what} failed", "exception": exc})

    def drop(self, bodies: Sequence[Body]) -> None:
        """Decodes and drops what nobody will read. Any thread.

        Handles are the case: whoever decodes one answers for the tensor behind it, and frees it by dropping the handle.
        """
        if bodies and self.context is not None:
            self.soon(self._drop, bodies)

    def _drop(self, bodies: Sequence[Body]) -> None:
        self.loop.run_in_executor(None, _decode, bodies, self.context)


def send(link: Link | None, sendings: Sequence[Sending]) -> None:
    """Sends what a machine wants sent, on the link that was present when the machine said so. Any thread."""
    if link is None:
        return
    for message, buffers, tracked in sendings:
        position = link.send(pack(messages.encode(message), buffers))
        if tracked is not None and (sent := tracked.sent) is not None:
            tracked.sent = sent[0], position


def _decode(bodies: Sequence[Body], context: Any) -> None:
    for header, buffers in bodies:
        with suppress(Exception):  # a value whose type cannot be had here, say; nobody wanted it
            codec.decode(header, buffers, context=context)
