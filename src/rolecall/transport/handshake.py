"""The first frame of each side: hello with the token, then welcome or refusal. Nothing is parsed before the token."""

from __future__ import annotations

import asyncio
import socket
from typing import Any, Protocol, TypeVar

import msgspec

from rolecall.errors import AuthenticationError, ProtocolError, RPCConnectionError, RPCError
from rolecall.protocol.token import Token
from rolecall.transport.frames import MAGIC, Frame, FrameReader, Limits, pack

PREFIX_SIZE = 20
HELLO_S = 10.0  # within which a connection must have sent its hello


class Hello(msgspec.Struct, array_like=True, frozen=True):
    """What the dialling side says of itself.

    Attributes:
        session: The id of its session; the same after it reconnected.
        info: Further facts.
    """

    session: str
    info: dict[str, Any] = {}


class Opening(msgspec.Struct, array_like=True, frozen=True):
    """First frame of the dialling side. `hello` is a `Hello`, decoded only after the token was compared."""

    token: bytes
    hello: msgspec.Raw


class Welcome(msgspec.Struct, array_like=True, frozen=True, tag=1):
    """The listener's answer. A new `session` means that it does not remember earlier calls."""

    session: str


class Refusal(msgspec.Struct, array_like=True, frozen=True, tag=2):
    """The listener closes the connection; `reason` is `token` or `hello`."""

    reason: str
    message: str


_encode = msgspec.msgpack.Encoder().encode
_openings = msgspec.msgpack.Decoder(Opening)
_hellos = msgspec.msgpack.Decoder(Hello)
_answers: msgspec.msgpack.Decoder[Welcome | Refusal] = msgspec.msgpack.Decoder(Welcome | Refusal)

T_co = TypeVar("T_co", covariant=True)


class _Decoder(Protocol[T_co]):
    def decode(self, buf: bytes | memoryview | msgspec.Raw, /) -> T_co: ...


def _decoded(decoder: _Decoder[T_co], header: bytes | memoryview | msgspec.Raw, what: str) -> T_co:
    try:
        return decoder.decode(header)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as e:
        raise ProtocolError(what) from e


async def read_hello(
    sock: socket.socket, begun: bytes, token: Token, limits: Limits, loop: asyncio.AbstractEventLoop
) -> Hello:
    """Reads the hello, whose beginning `begun` was read before, and not a byte more.

    Raises:
        AuthenticationError: The token is wrong. Nothing behind it was parsed.
        ProtocolError: It is no hello, or it is too large.
    """
    raw = _check_token(await _read_frame(sock, begun, limits, loop), token)
    return _decoded(_hellos, raw, "a hello without session and info")


def _check_token(header: bytes | memoryview, token: Token) -> msgspec.Raw:
    opening = _decoded(_openings, header, "a first frame that is no hello")
    if not token.matches(opening.token):
        raise AuthenticationError(seen="wrong" if opening.token else "missing")
    return opening.hello.copy()  # so that no variable holds the token when decoding raises


async def say_hello(
    sock: socket.socket, hello: Hello, token: Token, limits: Limits, loop: asyncio.AbstractEventLoop
) -> Welcome:
    """Sends the hello and waits for the welcome.

    Raises:
        AuthenticationError: The token was refused; trying again is of no use.
        ProtocolError: The hello was refused for another reason; trying again is of no use either.
        RPCConnectionError: The connection ended before an answer.
    """
    await loop.sock_sendall(sock, _hello_frame(hello, token))
    answer = _decoded(
        _answers,
        await _read_frame(sock, b"", limits, loop),
        "neither welcome nor refusal after the hello",
    )
    if isinstance(answer, Welcome):
        return answer
    if answer.reason == "token":
        raise AuthenticationError(seen="refused by the other side")
    raise ProtocolError(f"refused: {answer.message}")


def _hello_frame(hello: Hello, token: Token) -> bytes:
    opening = Opening(token.reveal(), msgspec.Raw(_encode(hello)))
    return b"".join(pack(_encode(opening)))


def welcome(session: str) -> bytes:
    return b"".join(pack(_encode(Welcome(session))))


def refusal(error: RPCError) -> bytes:
    reason = "token" if isinstance(error, AuthenticationError) else "hello"
    return b"".join(pack(_encode(Refusal(reason, str(error)))))


async def _read_frame(
    sock: socket.socket, begun: bytes, limits: Limits, loop: asyncio.AbstractEventLoop
) -> bytes | memoryview:
    """Reads exactly one frame without buffers; what follows it stays in the kernel."""
    reader = FrameReader(limits.before_hello())
    prefix = begun + await read_exactly(sock, PREFIX_SIZE - len(begun), loop)
    frames = _feed(reader, prefix)
    length = int.from_bytes(prefix[len(MAGIC) : len(MAGIC) + 4], "big")  # within the limits: _feed has checked
    if length:
        frames = _feed(reader, await read_exactly(sock, length, loop))
    return frames[0][0]


def _feed(reader: FrameReader, data: bytes) -> list[Frame]:
    reader.get_buffer()[: len(data)] = data
    return reader.buffer_updated(len(data))


async def read_exactly(sock: socket.socket, size: int, loop: asyncio.AbstractEventLoop) -> bytes:
    """Raises RPCConnectionError when the connection ends before."""
    data = bytearray(size)
    view, got = memoryview(data), 0
    while got < size:
        count = await loop.sock_recv_into(sock, view[got:])
        if not count:
            raise RPCConnectionError("the other side", "it closed the connection during the hello")
        got += count
    return bytes(data)
