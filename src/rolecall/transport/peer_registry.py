"""Peers by session: the `on_peer` of a server whose clients may reconnect."""

from __future__ import annotations

from collections.abc import Callable

from rolecall.transport.handshake import Hello
from rolecall.transport.peer import Peer

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
            self._close_oldest()
        self._peers[hello.session] = peer
        return peer

    def close(self) -> None:
        """Closes every peer. May be called twice."""
        for peer in list(self._peers.values()):
            peer.close()
        self._peers.clear()

    def _close_oldest(self) -> None:
        idle = [session for session, peer in self._peers.items() if not peer.attached]
        for session in idle[: max(0, len(idle) - KEPT)]:
            self._peers.pop(session).close()
