"""Who fetches and frees for a handle here: its shard's keeper, or the one its process or context is bound to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol

from rolecall.errors import TensorError
from rolecall.tensors.shard import Shard


class Fetching(Protocol):
    """Turns handles into tensors: `fetch.Fetcher`."""

    def fetch(self, handles: Sequence[Any]) -> list[Any]: ...
    async def afetch(self, handles: Sequence[Any]) -> list[Any]: ...


class Keeper(Protocol):
    """Whoever fetches and frees shards for this process: a controller's `Home`, a worker's `DataService`."""

    @property
    def fetcher(self) -> Fetching: ...
    def free(self, shards: Sequence[Shard]) -> None: ...


class Binding:
    """The keeper of handles that were decoded without one: the worker's, set once, or a context's own."""

    def __init__(self) -> None:
        self._process: Keeper | None = None
        self._context: ContextVar[Keeper | None] = ContextVar("rolecall_keeper", default=None)

    def set(self, keeper: Keeper | None) -> None:
        """Makes `keeper` the one of the whole process (a worker's threads all use its store)."""
        self._process = keeper

    @contextmanager
    def using(self, keeper: Keeper) -> Iterator[None]:
        """Makes `keeper` the one of this context only."""
        token = self._context.set(keeper)
        try:
            yield
        finally:
            self._context.reset(token)

    def get(self) -> Keeper | None:
        return self._context.get() or self._process

    def of(self, shard: Shard) -> Keeper:
        """Who fetches and frees this shard here.

        Raises:
            TensorError: Nobody does: the handle is outside the controller and its workers.
        """
        keeper = shard.keeper or self.get()
        if keeper is None:
            raise TensorError(f"nobody here can fetch shard {shard.id} of {shard.owner}: its handle is outside its run")
        return keeper


binding = Binding()
