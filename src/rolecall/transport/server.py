"""Server owns listening sockets, and connections until they are authenticated.

A listener serves both frames, which begin with a magic word, and HTTP. It knows nothing of calls: a link goes to the
peer that `on_peer` returns, an HTTP request to its route.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import stat
from collections.abc import Callable
from pathlib import Path
from weakref import WeakSet

from rolecall.errors import RPCConnectionError, RPCError
from rolecall.protocol.token import Token
from rolecall.transport import handshake
from rolecall.transport.forked import close_in_forks
from rolecall.transport.frames import MAGIC
from rolecall.transport.handshake import HELLO_S, Hello
from rolecall.transport.http.connection import HttpConnection, linger
from rolecall.transport.http.router import Routes
from rolecall.transport.link import Link
from rolecall.transport.loop import Tasks
from rolecall.transport.peer import Peer

MAX_UNAUTHENTICATED = 256  # connections
BACKLOG = 1024

__all__ = ["Hello", "Server"]


class Server:
    """Listens on a Unix path and on TCP addresses. All methods on the loop's thread.

    Args:
        token: The run's secret.
        on_peer: Returns the peer for a hello; an RPCError that it raises refuses the connection.
        http: The routes; without them every authenticated request is answered with 404.
    """

    def __init__(
        self,
        token: str | bytes | Token,
        *,
        loop: asyncio.AbstractEventLoop,
        on_peer: Callable[[Hello], Peer],
        http: Routes | None = None,
    ) -> None:
        self._token, self._loop, self._on_peer = Token(token), loop, on_peer
        self._routes = http or Routes()
        self._hosts = {"localhost", "127.0.0.1", "::1"}  # accepted in a `Host` header, with the bound addresses
        self._listeners: list[socket.socket] = []
        self._paths: list[Path] = []
        self._tasks = Tasks()
        self._unauthenticated: dict[asyncio.Task[None], None] = {}  # oldest first
        self._links: WeakSet[Link] = WeakSet()
        self.closed = False

    def listen_unix(self, path: str | Path) -> None:
        """Listens on a socket file that only this user may open; a stale one is replaced."""
        path = Path(path)
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISSOCK(path.lstat().st_mode):
                raise FileExistsError(f"{path} exists and is not a socket")
            path.unlink()
        self._listen(socket.AF_UNIX, str(path))
        self._paths.append(path)

    def listen_tcp(self, host: str = "127.0.0.1", port: int = 0) -> int:
        """Listens on an address and returns its port."""
        sock = self._listen(socket.AF_INET6 if ":" in host else socket.AF_INET, (host, port))
        self._hosts.add(host.lower())
        return int(sock.getsockname()[1])

    def _listen(self, family: int, where: str | tuple[str, int]) -> socket.socket:
        sock = socket.socket(family, socket.SOCK_STREAM)
        close_in_forks(sock)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.setblocking(False)
            sock.bind(where)
            if isinstance(where, str):
                Path(where).chmod(0o600)  # nobody can connect before listen()
            sock.listen(BACKLOG)
        except BaseException:
            sock.close()
            raise
        self._listeners.append(sock)
        self._tasks.start(self._accept(sock))
        return sock

    async def close(self) -> None:
        """Stops listening, ends the connections and waits for their tasks. May be called twice."""
        self.closed = True
        for path in self._paths:
            path.unlink(missing_ok=True)
        self._paths.clear()
        for link in list(self._links):
            link.close()
        await self._tasks.cancel()
        for sock in self._listeners:
            sock.close()
        self._listeners.clear()

    async def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                sock, _ = await self._loop.sock_accept(listener)
            except OSError as e:  # out of descriptors, for instance; without a pause the loop would spin
                self._loop.call_exception_handler({"message": "accept failed", "exception": e})
                await asyncio.sleep(0.1)
                continue
            if len(self._unauthenticated) >= MAX_UNAUTHENTICATED:
                oldest = next(iter(self._unauthenticated))  # idle or hostile: others send the token at once
                del self._unauthenticated[oldest]
                oldest.cancel()
            sock.setblocking(False)
            task = self._tasks.start(self._serve(sock))
            self._unauthenticated[task] = None
            task.add_done_callback(lambda task: self._unauthenticated.pop(task, None))
            await asyncio.sleep(0)  # it reads what is there, before a flood behind it is accepted and pushes it out

    def _authenticated(self) -> None:
        """The connection of the current task has sent the token."""
        task = asyncio.current_task()
        assert task is not None
        self._unauthenticated.pop(task, None)

    async def _serve(self, sock: socket.socket) -> None:
        with contextlib.ExitStack() as owned:
            owned.enter_context(sock)
            try:
                async with asyncio.timeout(HELLO_S):
                    begun = await handshake.read_exactly(sock, 1, self._loop)
                    if begun == MAGIC[:1]:
                        begun += await handshake.read_exactly(sock, len(MAGIC) - 1, self._loop)
                    if begun == MAGIC:
                        await self._serve_frames(sock, begun)
                        owned.pop_all()  # it is the link's now
                        return
                hosts = frozenset(self._hosts)
                await HttpConnection(
                    sock, begun, self._loop, self._token, self._routes, hosts, self._authenticated
                ).run()
            except (RPCError, OSError, TimeoutError):
                pass
            except Exception as e:  # a bug ends this connection and is reported; the listener goes on
                self._loop.call_exception_handler({"message": "serving a connection failed", "exception": e})

    async def _serve_frames(self, sock: socket.socket, begun: bytes) -> None:
        try:
            hello = await handshake.read_hello(sock, begun, self._token, self._loop)
            peer = self._on_peer(hello)
        except RPCConnectionError:
            raise
        except RPCError as e:
            await self._loop.sock_sendall(sock, handshake.refusal(e))
            await linger(sock, self._loop)
            raise
        await self._loop.sock_sendall(sock, handshake.welcome(peer.session))
        if self.closed:
            raise RPCConnectionError("the server", "it is closing")
        link = Link(sock, loop=self._loop)
        self._links.add(link)
        peer.attach(link, hello.session)


KEPT = 256  # peers without a link that are kept for a reconnect; the oldest beyond that are closed


class PeerRegistry:
    """Makes a peer for each new session and finds it again when the caller reconnects. On the loop's thread.

    Args:
        make: Makes the peer of a new session.
    """

    def __init__(self, make: Callable[[Hello], Peer]) -> None:
        self._make = make
        self._peers: dict[str, Peer] = {}

    def __call__(self, hello: Hello) -> Peer:
        peer = self._peers.pop(hello.session, None)
        if peer is None or peer.closed:
            peer = self._make(hello)
            idle = [session for session, kept in self._peers.items() if not kept.attached]
            for session in idle[: max(0, len(idle) - KEPT)]:
                self._peers.pop(session).close()
        self._peers[hello.session] = peer
        return peer

    def close(self) -> None:
        """Closes every peer. May be called twice."""
        for peer in list(self._peers.values()):
            peer.close()
        self._peers.clear()
