"""What two peers say to each other: small msgpack arrays, each the header of one frame. Pure data.

Values travel inside as `body` (the codec's header) and beside it as the frame's buffers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeVar

import msgspec

from rolecall.errors import EncodeError, ProtocolError

CALL, STREAM, NOTIFICATION = 0, 1, 2


class Hello(msgspec.Struct, array_like=True, frozen=True):
    """First frame of whoever dials. `rest` is a `HelloBody`, not looked at before the token is."""

    token: bytes
    rest: msgspec.Raw


class HelloBody(msgspec.Struct, array_like=True, frozen=True):
    session: str
    epoch: int
    info: dict[str, Any]


class Welcome(msgspec.Struct, array_like=True, frozen=True, tag=1):
    """The listener's answer. A new `session` means that it does not remember earlier calls."""

    session: str
    epoch: int


class Refusal(msgspec.Struct, array_like=True, frozen=True, tag=2):
    """The listener's last word; `reason` is `token`, `epoch` or `hello`."""

    reason: str
    sentence: str


class Request(msgspec.Struct, array_like=True, tag=1, gc=False):
    seq: int
    kind: int
    method: str
    meta: dict[str, Any]
    window: int
    acks: Sequence[int]
    body: bytes


class Reply(msgspec.Struct, array_like=True, tag=2, gc=False):
    """The one answer to a request; `items` counts the stream's items that come before it."""

    seq: int
    ok: bool
    items: int
    body: bytes


class Item(msgspec.Struct, array_like=True, tag=3, gc=False):
    seq: int
    index: int
    body: bytes


class Credit(msgspec.Struct, array_like=True, tag=4, gc=False):
    """The caller has consumed this many items of a stream."""

    seq: int
    consumed: int


class Cancel(msgspec.Struct, array_like=True, tag=5, gc=False):
    seq: int


class Ack(msgspec.Struct, array_like=True, tag=6, gc=False):
    """Replies that have arrived and need not be kept."""

    seqs: Sequence[int]


class Settled(msgspec.Struct, array_like=True, tag=7, gc=False):
    """Every reply below `below` but the `waiting` has arrived; makes good for acknowledgements that were lost."""

    below: int
    waiting: Sequence[int]


class Asked(msgspec.Struct, array_like=True, gc=False):
    """One call in a probe: how many of its items have arrived and were consumed, and whether it is given up."""

    seq: int
    arrived: int = 0
    consumed: int = 0
    cancelled: bool = False


class Probe(msgspec.Struct, array_like=True, tag=8, gc=False):
    """Asks what became of calls that wait long."""

    calls: list[Asked]


class Status(msgspec.Struct, array_like=True, tag=9, gc=False):
    """Answers a probe; stored replies are sent again beside it."""

    running: list[int]
    unknown: list[int]


Message = Request | Reply | Item | Credit | Cancel | Ack | Settled | Probe | Status

encode = msgspec.msgpack.Encoder().encode
_messages: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Message)
_hellos = msgspec.msgpack.Decoder(Hello)
_hello_bodies = msgspec.msgpack.Decoder(HelloBody)
_answers: msgspec.msgpack.Decoder[Welcome | Refusal] = msgspec.msgpack.Decoder(Welcome | Refusal)


def decode(header: bytes | memoryview) -> Message:
    """Raises ProtocolError for anything that is not a message."""
    return _decoded(_messages, header, "a frame that is no message")


def encode_request(request: Request) -> bytes:
    """As `encode`; its `meta` is the caller's.

    Raises:
        EncodeError: Something in `meta` is no plain value.
    """
    try:
        return encode(request)
    except (TypeError, ValueError, OverflowError) as e:
        raise EncodeError("meta", type(request.meta).__name__, f"only plain values travel there ({e})") from e


def decode_hello(header: bytes | memoryview) -> Hello:
    return _decoded(_hellos, header, "a first frame that is no hello")


def decode_hello_body(rest: msgspec.Raw) -> HelloBody:
    return _decoded(_hello_bodies, rest, "a hello without session and epoch")


def decode_answer(header: bytes | memoryview) -> Welcome | Refusal:
    return _decoded(_answers, header, "an answer to the hello that is none")


T_co = TypeVar("T_co", covariant=True)


class _Decoder(Protocol[T_co]):
    def decode(self, buf: bytes | memoryview | msgspec.Raw, /) -> T_co: ...


def _decoded(decoder: _Decoder[T_co], header: bytes | memoryview | msgspec.Raw, what: str) -> T_co:
    try:
        return decoder.decode(header)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as e:
        raise ProtocolError(what) from e
