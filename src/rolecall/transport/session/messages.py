"""What the two ends of a session say to each other: small msgpack arrays, each the header of one frame. Pure data.

Values travel inside as `body` (the codec's header) and beside it as the frame's buffers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from rolecall.errors import ProtocolError

CALL, STREAM, NOTIFICATION = 0, 1, 2

Buffers = Sequence[memoryview]
Body = tuple[bytes, Buffers]


class Invocation(msgspec.Struct, array_like=True, tag=1, gc=False):
    """Asks for one call. `acks` are answers that have arrived; `window` is how many items may be under way."""

    seq: int
    kind: int
    method: str
    meta: dict[str, Any]
    window: int
    acks: Sequence[int]
    body: bytes


class Reply(msgspec.Struct, array_like=True, tag=2, gc=False):
    """The one answer to an invocation; `items` counts the stream's items that come before it."""

    seq: int
    ok: bool
    items: int
    body: bytes


class Item(msgspec.Struct, array_like=True, tag=3, gc=False):
    """One item of a stream, counted from 0."""

    seq: int
    index: int
    body: bytes


class Credit(msgspec.Struct, array_like=True, tag=4, gc=False):
    """The caller has consumed this many items of a stream."""

    seq: int
    consumed: int


class Cancel(msgspec.Struct, array_like=True, tag=5, gc=False):
    """The caller has given up a call."""

    seq: int


class Ack(msgspec.Struct, array_like=True, tag=6, gc=False):
    """Replies that have arrived and need not be kept."""

    seqs: Sequence[int]


class Settled(msgspec.Struct, array_like=True, tag=7, gc=False):
    """Every reply below `below` but the `waiting` has arrived; makes good for acknowledgements that were lost."""

    below: int
    waiting: Sequence[int]


class Asked(msgspec.Struct, array_like=True, gc=False):
    """One call in a probe: how many of its items have arrived and were consumed, and whether it was given up."""

    seq: int
    arrived: int = 0
    consumed: int = 0
    cancelled: bool = False


class Probe(msgspec.Struct, array_like=True, tag=8, gc=False):
    """Asks what became of calls without an answer."""

    calls: list[Asked]


class Status(msgspec.Struct, array_like=True, tag=9, gc=False):
    """Answers a probe; kept replies are sent again beside it.

    Attributes:
        running: Taken and not answered yet.
        unknown: Never taken.
        gone: Taken, but the answer is no longer kept; not run again.
    """

    running: list[int]
    unknown: list[int]
    gone: list[int]


Message = Invocation | Reply | Item | Credit | Cancel | Ack | Settled | Probe | Status

encode = msgspec.msgpack.Encoder().encode
_decoder: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Message)


def decode(header: bytes | memoryview) -> Message:
    """Raises ProtocolError for anything that is not a message."""
    try:
        return _decoder.decode(header)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as e:
        raise ProtocolError("a frame that is no message") from e
