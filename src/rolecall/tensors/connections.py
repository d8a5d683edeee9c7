"""Connections to owners of shards, opened when first needed and failed when an owner cannot be reached."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any, Protocol

from rolecall.errors import RPCConnectionError
from rolecall.protocol.token import Token
from rolecall.transport.client import Client
from rolecall.transport.handshake import Hello
from rolecall.transport.peer import Peer

UNREACHABLE_S = 10.0  # for an owner whose host does not answer, which cannot be told from a slow network
POLL_S = 0.1
REFUSED_ROUNDS = 3  # in a row: its host answers, and the owner is dead


class Requester(Protocol):
    """A connection to an owner: `transport.peer.Peer`. Any thread may use it. A request returns a `Call`."""

    def request(self, method: str, value: Any = None, *, timeout: float | None = None) -> Any: ...


Connect = Callable[[str, tuple[str, ...]], Requester]
"""Returns the connection to an owner by its id and addresses, without blocking. Raises RolecallError if it is dead."""


class Connections:
    """One connection to each owner. It is a `Connect`: call it with an owner's id and addresses.

    Args:
        hello: What this process says of itself.
        context: Handed to the codec for what owners answer.
    """

    def __init__(
        self,
        token: str | bytes | Token,
        *,
        loop: asyncio.AbstractEventLoop,
        hello: Hello | None = None,
        context: Any = None,
    ) -> None:
        self._token, self._loop, self._hello, self._context = Token(token), loop, hello, context
        self._lock = threading.Lock()
        self._clients: dict[tuple[str, tuple[str, ...]], Client] = {}
        self._closed = False

    def __call__(self, owner: str, addresses: tuple[str, ...]) -> Peer:
        """The connection to `owner`, which may not be established yet.

        Raises:
            RPCConnectionError: This process is closing, or the shard has no address.
        """
        key = (owner, addresses)
        with self._lock:
            if self._closed or not addresses:
                raise RPCConnectionError(owner, "closed on this side" if self._closed else "it has no address")
            client = self._clients.get(key)
            if client is None or client.peer.closed:
                client = self._clients[key] = self._dial(owner, addresses)
            return client.peer

    def close(self) -> None:
        """Closes every connection. May be called twice."""
        with self._lock:
            self._closed = True
            clients = list(self._clients.values())
            self._clients.clear()
        for client in clients:
            client.close()

    def _dial(self, owner: str, addresses: tuple[str, ...]) -> Client:
        def watch(error: Exception | None = None) -> None:
            self._watch(client, self._loop.time())

        peer = Peer(owner, loop=self._loop, context=self._context, on_detached=watch)
        client = Client(peer, addresses, self._token, self._hello)
        self._loop.call_soon_threadsafe(watch)
        return client

    def _watch(self, client: Client, since: float) -> None:
        """Fails a client whose owner is dead, or cannot be reached since that time. On the loop's thread only."""
        if client.peer.closed or client.peer.attached:
            return
        if client.refused_rounds >= REFUSED_ROUNDS:
            client.fail(RPCConnectionError(client.peer.name, "nothing listens there any more"))
        elif self._loop.time() - since >= UNREACHABLE_S:
            client.fail(RPCConnectionError(client.peer.name, f"not reached within {UNREACHABLE_S:g} s"))
        else:
            self._loop.call_later(POLL_S, self._watch, client, since)
