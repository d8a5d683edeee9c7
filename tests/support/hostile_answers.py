"""An engine whose worker answers what it likes: bytes of its own in the place of results, and frames unasked."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec

from rolecall.transport import codec
from rolecall.transport.frames import pack
from rolecall.transport.peer import Peer


class Forged(NamedTuple):
    """What is sent as it is, instead of an encoded value."""

    header: bytes
    buffers: list[bytes]


honest = codec.encode


def _encode(value: Any, place: str = "value") -> codec.Encoded:
    if isinstance(value, Forged):
        return codec.Encoded(value.header, [memoryview(bytearray(b)) for b in value.buffers])
    return honest(value, place)


class Liar:
    def __init__(self) -> None:
        codec.encode = _encode

    def answer(self, header: bytes, buffers: list[bytes]) -> Any:
        return Forged(header, buffers)

    def items(self, header: bytes) -> Iterator[Any]:
        for _ in range(3):
            yield Forged(header, [])

    def say(self, messages: list[Any], times: int = 1) -> None:
        """Sends frames unasked to the controller, each with one of these as msgpack."""
        self._send(b"".join(frame(message) for message in messages) * times)

    def request(self, count: int) -> None:
        """Calls its controller, so many times, and never looks at the answers."""
        self._send(b"".join(frame([1, seq, 0, "method", {}, 16, [], b"\xc0"]) for seq in range(0, 2 * count, 2)))

    def _send(self, data: bytes) -> None:
        for peer in [found for found in gc.get_objects() if type(found) is Peer and found.name == "controller"]:
            if peer.link is not None:
                peer.link.send([data])

    def greet(self) -> str:
        return "hello"

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


def frame(message: Any) -> bytes:
    return b"".join(map(bytes, pack(msgspec.msgpack.encode(message))))
