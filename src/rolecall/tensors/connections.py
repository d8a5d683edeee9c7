"""Connections to owners of shards, opened when first needed and failed when an owner cannot be reached."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from rolecall.errors import RPCConnectionError
from rolecall.protocol.token import Token
from rolecall.transport.address import listens
from rolecall.transport.client import Client
from rolecall.transport.peer import Peer

UNREACHABLE_S = 10.0  # for an owner on another host, whose death cannot be told from a slow network
POLL_S = 0.1


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
        unreachable_s: Seconds without a connection after which an owner is considered dead.
    """

    def __init__(
        self,
        token: str | bytes | Token,
        *,
        loop: asyncio.AbstractEventLoop,
        hello: dict[str, Any] | None = None,
        context: Any = None,
        unreachable_s: float = UNREACHABLE_S,
    ) -> None:
        self._token, self._loop, self._hello, self._context = Token(token), loop, hello, context
        self._unreachable_s = unreachable_s
        self._lock = threading.Lock()
        self._clients: dict[tuple[str, tuple[str, ...]], Client] = {}
        self._closed = False

    def __enter__(self) -> Connections:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

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
        watch = _Watch(self._loop, addresses, self._unreachable_s)
        client = Client(
            owner,
            addresses,
            self._token,
            loop=self._loop,
            hello=self._hello,
            context=self._context,
            on_attached=watch.stop,
            on_detached=lambda exc: watch.start(),
        )
        watch.client = client
        self._loop.call_soon_threadsafe(watch.start)
        return client


class _Watch:
    """Fails a client whose owner is dead or cannot be reached. Used on the loop's thread only."""

    def __init__(self, loop: asyncio.AbstractEventLoop, addresses: Sequence[str], unreachable_s: float) -> None:
        self._loop, self._addresses, self._unreachable_s = loop, addresses, unreachable_s
        self._timer: asyncio.TimerHandle | None = None
        self.client: Client | None = None

    def start(self) -> None:
        self.stop()
        if self.client is not None and not self.client.peer.attached:
            self._check(self.client, self._loop.time())

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _check(self, client: Client, since: float) -> None:
        if client.peer.closed:
            return
        if _refused(self._addresses):
            client.fail(RPCConnectionError(client.name, "nothing listens on its socket any more"))
        elif self._loop.time() - since >= self._unreachable_s:
            client.fail(RPCConnectionError(client.name, f"not reached within {self._unreachable_s:g} s"))
        else:
            self._timer = self._loop.call_later(POLL_S, self._check, client, since)


def _refused(addresses: Sequence[str]) -> bool:
    """True when the owner is on this host and dead: its socket exists, or was its only address, and refuses."""
    paths = [address.removeprefix("unix:") for address in addresses if address.startswith("unix:")]
    remote = len(paths) < len(addresses)
    here = [path for path in paths if not remote or Path(path).exists()]
    return bool(here) and not any(map(listens, here))
