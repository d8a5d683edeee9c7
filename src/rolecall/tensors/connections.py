"""Connections to owners, opened when first needed and given up when an owner stays away."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rolecall.errors import RPCConnectionError
from rolecall.protocol.token import Token
from rolecall.transport.client import Client
from rolecall.transport.peer import Peer

PATIENCE_S = 10.0  # for an owner on another host, whose death looks like a slow network
LOOK_S = 0.1


class Connections:
    """One connection to each owner. It is a `Connect`: call it with an owner's id and addresses.

    Args:
        hello: What this process says of itself.
        context: Handed to the codec for what owners answer.
        patience: Seconds without a connection after which an owner is taken for gone.
    """

    def __init__(
        self,
        token: str | bytes | Token,
        *,
        loop: asyncio.AbstractEventLoop,
        hello: dict[str, Any] | None = None,
        context: Any = None,
        patience: float = PATIENCE_S,
    ) -> None:
        self._token, self._loop, self._hello, self._context = Token(token), loop, hello, context
        self._patience = patience
        self._lock = threading.Lock()
        self._clients: dict[tuple[str, tuple[str, ...]], Client] = {}
        self._closed = False

    def __enter__(self) -> Connections:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __call__(self, owner: str, addresses: tuple[str, ...]) -> Peer:
        """The connection to `owner`; does not wait until it stands.

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

    def lost(self, owner: str, exc: BaseException) -> None:
        """The owner is known to be dead: what waits for it fails with `exc` now."""
        with self._lock:
            gone = [self._clients.pop(key) for key in list(self._clients) if key[0] == owner]
        for client in gone:
            client.fail(exc)

    def close(self) -> None:
        """Closes every connection. May be called twice."""
        with self._lock:
            self._closed = True
            clients = list(self._clients.values())
            self._clients.clear()
        for client in clients:
            client.close()

    def _dial(self, owner: str, addresses: tuple[str, ...]) -> Client:
        watch = _Watch(self._loop, addresses, self._patience)
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
    """Gives a connection up that stays away; on the loop's thread only."""

    def __init__(self, loop: asyncio.AbstractEventLoop, addresses: Sequence[str], patience: float) -> None:
        self._loop, self._addresses, self._patience = loop, addresses, patience
        self._timer: asyncio.TimerHandle | None = None
        self.client: Client | None = None

    def start(self) -> None:
        self.stop()
        if self.client is not None and not self.client.peer.attached:
            self._look(self._loop.time())

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self, since: float) -> None:
        assert self.client is not None
        if self.client.peer.closed:
            return
        if _refused(self._addresses):
            self.client.fail(RPCConnectionError(self.client.name, "nothing listens on its socket any more"))
        elif self._loop.time() - since >= self._patience:
            self.client.fail(RPCConnectionError(self.client.name, f"not reached within {self._patience:g} s"))
        else:
            self._timer = self._loop.call_later(LOOK_S, self._look, since)


def _refused(addresses: Sequence[str]) -> bool:
    """True when the owner was on this host and is dead: its socket is there, or was its only address, and refuses.

    A living process accepts connections however busy it is: the kernel does it.
    """
    paths = [address.removeprefix("unix:") for address in addresses if address.startswith("unix:")]
    remote = len(paths) < len(addresses)
    refused = [_refuses(path) for path in paths if not remote or Path(path).exists()]
    return bool(refused) and all(refused)


def _refuses(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.setblocking(False)
        try:
            sock.connect(path)
        except (ConnectionRefusedError, FileNotFoundError):
            return True
        except OSError:  # its queue is full, say
            return False
        return False
