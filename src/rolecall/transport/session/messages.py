"""The messages of a session: small msgpack arrays, each the header of one frame. Pure data.

A value is in `body` (the codec's header) and in the frame's buffers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import msgspec

from rolecall.errors import ProtocolError

CALL, STREAM, NOTIFICATION = 0, 1, 2

PROBED_AT_ONCE = 1024
Numbers = Annotated[list[int], msgspec.Meta(max_length=PROBED_AT_ONCE)]
Buffers = Sequence[memoryview]
Body = tuple[bytes, Buffers]


class Invocation(msgspec.Struct, array_like=True, tag=1, gc=False):
    """Requests one call. `acks` are replies that have arrived; `window` is how many items may be in flight."""

    seq: int
    kind: int
    method: str
    meta: dict[str, Any]
    window: int
    acks: Sequence[int]
    body: bytes


class Reply(msgspec.Struct, array_like=True, tag=2, gc=False):
    """The answer to an invocation; `items` is the number of items of the stream before it."""

    seq: int
    ok: bool
    items: int
    body: bytes


class Item(msgspec.Struct, array_like=True, tag=3, gc=False):
    """One item of a stream, counted from 0."""

    seq: int
    index: int
    body: bytes


class Progress(msgspec.Struct, array_like=True, tag=4, gc=False):
    """How many items of a call have arrived and were consumed, and whether the caller has cancelled it."""

    seq: int
    arrived: int
    consumed: int
    cancelled: bool


class Ack(msgspec.Struct, array_like=True, tag=5, gc=False):
    """Replies that have arrived; the callee may drop them."""

    seqs: Sequence[int]


class CumulativeAck(msgspec.Struct, array_like=True, tag=6, gc=False):
    """Every reply below `below`, except those in `waiting`, has arrived. Repeats lost acknowledgements."""

    below: int
    waiting: Sequence[int]


class Probe(msgspec.Struct, array_like=True, tag=7, gc=False):
    """Asks for the state of calls without an answer."""

    calls: list[Progress]


class Status(msgspec.Struct, array_like=True, tag=8, gc=False):
    """Answers a probe. Replies that are kept are sent again, too.

    Attributes:
        running: Accepted and not answered yet.
        unknown: Never accepted.
        gone: Accepted, but the reply is no longer kept; not run again.
    """

    running: Numbers
    unknown: Numbers
    gone: Numbers


ToCaller = Reply | Item | Status
ToCallee = Invocation | Progress | Ack | CumulativeAck | Probe
Message = ToCaller | ToCallee

UNKNOWN = 1 << 62  # the position of a frame that is being sent


class Tracked(msgspec.Struct, eq=False):
    """A call whose last frame is followed on its way to the kernel.

    Attributes:
        sent: Number of the link that the frame was last sent on, and the position behind it; None before that.
            Replaced as one tuple, so that a position is never read with the number of another link.
    """

    sent: tuple[int, int] | None = None

    def queued(self, link: int, written: int) -> bool:
        """Whether the frame is still queued in this process. Then it is neither probed nor sent again."""
        return self.sent is not None and self.sent[0] == link and self.sent[1] > written


Sending = tuple[Message, Buffers, Tracked | None]  # a message that a machine wants sent

encode = msgspec.msgpack.Encoder().encode
_decoder: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Message)
_of_answers: msgspec.msgpack.Decoder[ToCaller] = msgspec.msgpack.Decoder(ToCaller)


def decode(header: bytes | memoryview, *, answers_only: bool = False) -> Message:
    """Raises ProtocolError for anything that is not a message, or, with `answers_only`, not one to a caller."""
    try:
        return (_of_answers if answers_only else _decoder).decode(header)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as e:
        raise ProtocolError("a frame that is not a message of a session") from e
