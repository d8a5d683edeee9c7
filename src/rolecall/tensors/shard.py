"""A shard: one stored piece of memory that handles point to. It knows where its bytes are and never holds them."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Any, Protocol, TypeVar

import msgspec

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
