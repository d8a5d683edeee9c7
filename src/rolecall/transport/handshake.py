"""The first frame of each side: hello with the token, then welcome or refusal. Nothing is parsed before the token."""

from __future__ import annotations

import asyncio
import socket
from typing import TypeVar

import msgspec

from rolecall.errors import AuthenticationError, ProtocolError, RPCConnectionError, RPCError
from rolecall.protocol.state import GuardState
from rolecall.protocol.token import Token
from rolecall.transport.frames import PREFIX_SIZE, Limits, pack, sizes_of

LIMITS = Limits(max_header=4096, max_buffers=0, max_payload=0)  # of a first frame: the token is not known yet
HELLO_S = 10.0  # within which a connection must have sent its hello


class Hello(msgspec.Struct, array_like=True, frozen=True):
    """What the dialling side says of itself.

    Attributes:
        session: The id of its session; the same after it reconnected.
        name: Its name, for messages.
        guard: Of a guard: which one it is, and where.
        run_id: The run that it belongs to.
    """

    session: str = ""
    name: str = "a client"
    guard: GuardState | None = None
    run_id: str = ""


class Opening(msgspec.Struct, array_like=True, frozen=True):
    """First frame of the dialling side. `hello` is a `Hello`, decoded only after the token was compared."""

    token: bytes
    hello: msgspec.Raw


WELCOME, REFUSAL = 1, 2


class Answer(msgspec.Struct, array_like=True, frozen=True):
    """First frame of the listener; after a refusal it closes the connection.

    Attributes:
        kind: `WELCOME` or `REFUSAL`.
        what: The id of its session, where a new one means that it does not remember earlier calls; or what it refuses,
            `token` or `hello`.
        message: Why it refuses.
    """

    kind: int
    what: str
    message: str = ""


_encode = msgspec.msgpack.Encoder().encode

T = TypeVar("T")


def _decoded(kind: type[T], header: bytes | msgspec.Raw, what: str) -> T:
    try:
        return msgspec.msgpack.decode(header, type=kind)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as e:
        raise ProtocolError(what) from e


async def read_hello(sock: socket.socket, begun: bytes, token: Token, loop: asyncio.AbstractEventLoop) -> Hello:
    """Reads the hello, whose beginning `begun` was read before, and not a byte more.

    Raises:
        AuthenticationError: The token is wrong. Nothing behind it was parsed.
        ProtocolError: It is no hello, or it is too large.
    """
    raw = _check_token(await _read_header(sock, begun, loop), token)
    return _decoded(Hello, raw, "a hello that does not say who it is")


def _check_token(header: bytes, token: Token) -> msgspec.Raw:
    opening = _decoded(Opening, header, "a first frame that is no hello")
    if not token.matches(opening.token):
        raise AuthenticationError(seen="wrong" if opening.token else "missing")
    return opening.hello.copy()  # so that no variable holds the token when decoding raises


async def say_hello(sock: socket.socket, hello: Hello, token: Token, loop: asyncio.AbstractEventLoop) -> str:
    """Sends the hello, waits for the welcome, and returns the listener's session.

    Raises:
        AuthenticationError: The token was refused; trying again is of no use.
        ProtocolError: The hello was refused for another reason; trying again is of no use either.
        RPCConnectionError: The connection ended before an answer.
    """
    await loop.sock_sendall(sock, _frame(Opening(token.reveal(), msgspec.Raw(_encode(hello)))))
    header = await _read_header(sock, b"", loop)
    answer = _decoded(Answer, header, "neither welcome nor refusal after the hello")
    if answer.kind == WELCOME:
        return answer.what
    if answer.what == "token":
        raise AuthenticationError(seen="refused by the other side")
    raise ProtocolError(f"refused: {answer.message}")


def welcome(session: str) -> bytes:
    return _frame(Answer(WELCOME, session))


def refusal(error: RPCError) -> bytes:
    return _frame(Answer(REFUSAL, "token" if isinstance(error, AuthenticationError) else "hello", str(error)))


def _frame(content: msgspec.Struct) -> bytes:
    return b"".join(pack(_encode(content)))


async def _read_header(sock: socket.socket, begun: bytes, loop: asyncio.AbstractEventLoop) -> bytes:
    """Reads exactly one frame without buffers; what follows it stays in the kernel."""
    prefix = begun + await read_exactly(sock, PREFIX_SIZE - len(begun), loop)
    length, _, _ = sizes_of(prefix, 0, LIMITS)
    return await read_exactly(sock, length, loop)


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
