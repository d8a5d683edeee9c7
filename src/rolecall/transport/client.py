"""Client keeps a peer connected: it dials, says hello, attaches the link, and dials again when the link is lost."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress

import msgspec

from rolecall.errors import RPCConnectionError
from rolecall.protocol.token import Token
from rolecall.transport import address, handshake
from rolecall.transport.handshake import HELLO_S, Hello
from rolecall.transport.link import Link
from rolecall.transport.peer import Peer

FIRST_BACKOFF_S = 0.005
LAST_BACKOFF_S = 1.0


class Client:
    """Dials as soon as it is made, until `close()` or `fail()`. `peer` may be used at once, from any thread.

    Args:
        addresses: Tried in this order in each round: Unix sockets, then TCP.
        hello: What this side says of itself; its session is filled in.

    Attributes:
        refused_rounds: Rounds in a row in which nothing listened at any address.

    A refusal, for instance of the token, fails the peer with it, and the client does not dial again.
    """

    def __init__(
        self, peer: Peer, addresses: Sequence[str], token: str | bytes | Token, hello: Hello | None = None
    ) -> None:
        self._addresses = sorted(map(address.parse, addresses), key=lambda a: not a.is_unix)
        self.peer, self._token, self._loop = peer, Token(token), peer.loop
        self._hello = hello or Hello()
        self._task: asyncio.Task[None] | None = None
        self.refused_rounds = 0
        self._loop.call_soon_threadsafe(self._start)

    def close(self) -> None:
        """Ends the session and the dialling. Any thread, any number of times."""
        self.fail(RPCConnectionError(self.peer.name, "closed on this side"))

    def fail(self, exc: BaseException) -> None:
        """As `close`, with what pending and later calls raise."""
        self.peer.fail(exc)
        with suppress(RuntimeError):  # the loop is closed, and its tasks with it
            self._loop.call_soon_threadsafe(self._stop)

    def _start(self) -> None:
        if not self.peer.closed:
            self._task = self._loop.create_task(self._keep_connected())

    def _stop(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def _keep_connected(self) -> None:
        backoff = FIRST_BACKOFF_S
        while not self.peer.closed:
            try:
                if await self._connect():
                    backoff = FIRST_BACKOFF_S
                    await self.peer.detached.wait()
            except Exception as e:  # refused, or a bug; either way no call may wait for ever
                self.fail(e)
                return
            await asyncio.sleep(backoff)
            backoff = min(backoff * 2, LAST_BACKOFF_S)

    async def _connect(self) -> bool:
        refused = 0
        for where in self._addresses:
            try:
                async with asyncio.timeout(HELLO_S):
                    await self._connect_to(where)
                return True
            except (ConnectionRefusedError, FileNotFoundError):
                refused += 1
            except (OSError, RPCConnectionError, TimeoutError):
                continue
        self.refused_rounds = self.refused_rounds + 1 if refused == len(self._addresses) else 0
        return False

    async def _connect_to(self, where: address.Address) -> None:
        sock = await address.dial(where, self._loop)
        try:
            hello = msgspec.structs.replace(self._hello, session=self.peer.session)
            session = await handshake.say_hello(sock, hello, self._token, self._loop)
            link = Link(sock, loop=self._loop)
        except BaseException:
            sock.close()
            raise
        self.peer.attach(link, session)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
