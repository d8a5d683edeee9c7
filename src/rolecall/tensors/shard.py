"""A shard: one stored piece of memory that handles point to. It knows where its bytes are and never holds them."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Annotated, Any, Protocol, TypeVar

import msgspec

from rolecall.errors import TensorError
from rolecall.tensors.dtypes import itemsize

Where = dict[str, str | int]
Key = TypeVar("Key")
Item = TypeVar("Item")


class Fetches(Protocol):
    """Turns handles into tensors: `fetch.Fetcher`."""

    def fetch(self, handles: Sequence[Any]) -> list[Any]: ...
    async def afetch(self, handles: Sequence[Any]) -> list[Any]: ...


class ShardManager(Protocol):
    """Fetches and frees shards for this process: `Home` in the controller, `DataService` in a worker."""

    @property
    def fetcher(self) -> Fetches: ...
    def free(self, shards: Sequence[Shard]) -> None: ...


def grouped(items: Iterable[Item], key: Callable[[Item], Key]) -> dict[Key, list[Item]]:
    """Items by what `key` says of each, in order."""
    groups: dict[Key, list[Item]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups


Count = Annotated[int, msgspec.Meta(ge=0)]
Shape = Annotated[tuple[Count, ...], msgspec.Meta(max_length=64)]
Id = Annotated[str, msgspec.Meta(min_length=32, max_length=32)]


class Shard(msgspec.Struct, array_like=True, forbid_unknown_fields=True, eq=False, weakref=True, dict=True):
    """One stored tensor or array on its owner; also its form on the wire.

    Attributes:
        id: Never used twice: 32 hexadecimal digits.
        owner: Id of the worker that stores it.
        addresses: Where the owner listens: `unix:/path`, `tcp:host:port`.
        backend: Name of the backend that holds the bytes.
        where: What that backend needs to find them; plain values.
        dtype: Name of the dtype, `float32`, `numpy:<f4`.
        shape: Shape of the stored tensor; its elements are in row-major order.
        key: What identifies the shard in every process. It and what follows do not travel.
        numel: Number of elements.
        manager: What fetches and frees it, in the controller; None in workers.
        collected: In the controller: frees it, once, at the latest when no handle of it is left.
        freed: True once this process has asked its owner to free it.
    """

    id: Id
    owner: str
    addresses: tuple[str, ...]
    backend: str
    where: Where
    dtype: str
    shape: Shape

    def __post_init__(self) -> None:
        if not itemsize(self.dtype) or len(bytes.fromhex(self.id)) != 16:
            raise ValueError(f"no shard has the dtype {self.dtype!r} and the id {self.id!r}")
        self.key = self.owner, self.id
        self.numel = math.prod(self.shape)
        self.manager: ShardManager | None = None
        self.collected: weakref.finalize[Any, Shard] | None = None
        self.freed = False

    @property
    def nbytes(self) -> int:
        """Size of the elements."""
        return self.numel * itemsize(self.dtype)


class Binding:
    """The manager of shards that have none of their own: the worker's, set once, or the context's."""

    def __init__(self) -> None:
        self._process: ShardManager | None = None
        self._context: ContextVar[ShardManager | None] = ContextVar("rolecall_shard_manager", default=None)

    def set(self, manager: ShardManager | None) -> None:
        """Sets the manager of the whole process."""
        self._process = manager

    def bind(self, manager: ShardManager) -> None:
        """Sets the manager of this thread, for as long as it lives."""
        self._context.set(manager)

    @contextmanager
    def using(self, manager: ShardManager) -> Iterator[None]:
        """Sets the manager of this context for the block."""
        token = self._context.set(manager)
        try:
            yield
        finally:
            self._context.reset(token)

    def get(self) -> ShardManager | None:
        return self._context.get() or self._process

    def of(self, shard: Shard) -> ShardManager:
        """The manager of this shard.

        Raises:
            TensorError: There is none: this process is neither the controller nor a worker of the run.
        """
        manager = shard.manager or self.get()
        if manager is None:
            problem = "this process is neither the controller nor a worker of its run"
            raise TensorError(f"shard {shard.id} of {shard.owner} cannot be fetched: {problem}")
        return manager


binding = Binding()
