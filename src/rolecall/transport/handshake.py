"""The first frame each way: hello with the token, welcome or refusal. Nothing is parsed before the token was right."""

from __future__ import annotations

import asyncio
import socket
from dataclasses import dataclass, field
from typing import Any

import msgspec

from rolecall.errors import AuthenticationError, ProtocolError, RPCConnectionError, RPCError
from rolecall.protocol.token import Token
from rolecall.transport.frames import MAGIC, Frame, FrameReader, Limits, pack
from rolecall.transport.session import messages

PREFIX_SIZE = 20
HELLO_S = 10.0  # how long a connection may take to say who it is


@dataclass(frozen=True)
class Hello:
    """Who dials.

    Attributes:
        session: The id of the caller's end; the same after it reconnected.
        epoch: Which controller it follows; an older one than known is refused.
        info: Whatever else it says of itself.
    """

    session: str
    epoch: int = 0
    info: dict[str, Any] = field(default_factory=dict)


async def read_hello(
    sock: socket.socket, begun: bytes, token: Token, limits: Limits, loop: asyncio.AbstractEventLoop
) -> Hello:
    """Reads the hello, of which `begun` has come, and not a byte more.

    Raises:
        AuthenticationError: The token is wrong. Nothing behind it was parsed.
        ProtocolError: It is no hello, or it is too large.
    """
    body = messages.decode_hello_body(_behind_token(await _read_frame(sock, begun, limits, loop), token))
    return Hello(body.session, body.epoch, body.info)


def _behind_token(header: bytes | memoryview, token: Token) -> msgspec.Raw:
    hello = messages.decode_hello(header)
    if not token.matches(hello.token):
        raise AuthenticationError(seen="wrong" if hello.token else "missing")
    return hello.rest.copy()  # so that no variable of a frame that may still raise holds the secret


async def say_hello(
    sock: socket.socket, hello: Hello, token: Token, limits: Limits, loop: asyncio.AbstractEventLoop
) -> messages.Welcome:
    """Says hello and waits for the welcome.

    Raises:
        AuthenticationError: The token was refused; trying again is of no use.
        ProtocolError: The hello was refused for another reason, also for good.
        RPCConnectionError: The connection ended before an answer.
    """
    await loop.sock_sendall(sock, _hello_frame(hello, token))
    answer = messages.decode_answer(await _read_frame(sock, b"", limits, loop))
    if isinstance(answer, messages.Welcome):
        return answer
    if answer.reason == "token":
        raise AuthenticationError(seen="refused by the other side")
    raise ProtocolError(f"refused: {answer.sentence}")


def _hello_frame(hello: Hello, token: Token) -> bytes:
    rest = msgspec.Raw(messages.encode(messages.HelloBody(hello.session, hello.epoch, hello.info)))
    return b"".join(pack(messages.encode(messages.Hello(token.reveal(), rest))))


def welcome(session: str, epoch: int) -> bytes:
    return b"".join(pack(messages.encode(messages.Welcome(session, epoch))))


def refusal(error: RPCError) -> bytes:
    reason = "token" if isinstance(error, AuthenticationError) else "hello"
    return b"".join(pack(messages.encode(messages.Refusal(reason, str(error)))))


async def _read_frame(
    sock: socket.socket, begun: bytes, limits: Limits, loop: asyncio.AbstractEventLoop
) -> bytes | memoryview:
    """Reads exactly one frame without buffers; what follows it stays in the kernel."""
    reader = FrameReader(limits.before_hello())
    prefix = begun + await read_exactly(sock, PREFIX_SIZE - len(begun), loop)
    frames = _feed(reader, prefix)
    length = int.from_bytes(prefix[len(MAGIC) : len(MAGIC) + 4], "big")  # within the limits, else _feed had raised
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
            raise RPCConnectionError("the other side", "it hung up during the hello")
        got += count
    return bytes(data)
