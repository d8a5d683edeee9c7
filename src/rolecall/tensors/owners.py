"""How a shard's owner is asked. It says what a connection must offer and keeps none open."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol


class Answer(Protocol):
    """A request under way: `rpc.call.Call`."""

    @property
    def done(self) -> bool: ...
    def result(self) -> Any: ...
    def cancel(self) -> None: ...
    def __await__(self) -> Any: ...


class Requester(Protocol):
    """The other end of a connection: `rpc.peer.Peer`. Any thread may ask."""

    def request(self, method: str, value: Any = None, *, timeout: float | None = None) -> Any: ...


Connect = Callable[[str, tuple[str, ...]], Requester]
"""Gives the connection to an owner by its id and addresses; must not block. Raises RolecallError when it is gone."""
