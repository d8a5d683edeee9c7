"""A shard: one stored piece of memory that handles point to. It knows where its bytes are and never holds them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Protocol

import msgspec

from rolecall.errors import DecodeError
from rolecall.tensors.dtypes import ITEMSIZE

Where = dict[str, str | int]


class Fetches(Protocol):
    """Turns handles into tensors: `fetch.Fetcher`."""

    def fetch(self, handles: Sequence[Any]) -> list[Any]: ...
    async def afetch(self, handles: Sequence[Any]) -> list[Any]: ...


class ShardManager(Protocol):
    """Fetches and frees shards for this process: `Home` in the controller, `DataService` in a worker."""

    @property
    def fetcher(self) -> Fetches: ...
    def free(self, shards: Sequence[Shard]) -> None: ...


@dataclass(slots=True, weakref_slot=True, eq=False)
class Shard:
    """One stored tensor on its owner.

    Attributes:
        id: Never used twice: 32 hexadecimal digits.
        owner: Id of the worker that stores it.
        addresses: Where the owner listens: `unix:/path`, `tcp:host:port`.
        backend: Name of the backend that holds the bytes.
        where: What that backend needs to find them; plain values.
        dtype: Name of the dtype, `float32`.
        shape: Shape of the stored tensor; its elements are in row-major order.
        nbytes: Size of the elements.
        manager: What fetches and frees it, in the controller; None in workers.
        freed: True once this process has asked its owner to free it.
    """

    id: str
    owner: str
    addresses: tuple[str, ...]
    backend: str
    where: Where
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    manager: ShardManager | None = field(default=None, repr=False)
    freed: bool = field(default=False, repr=False)

    @property
    def key(self) -> tuple[str, str]:
        """What identifies the shard in every process."""
        return self.owner, self.id

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    def to_plain(self) -> list[Any]:
        """The shard as plain values, for the codec."""
        return [self.id, self.owner, [*self.addresses], self.backend, self.where, self.dtype, [*self.shape]]

    @classmethod
    def from_plain(cls, plain: Any) -> Shard:
        """The shard of which `to_plain` returned these values.

        Raises:
            DecodeError: The values describe no shard.
        """
        try:
            f = msgspec.convert(plain, _Fields)
        except msgspec.ValidationError as e:
            raise DecodeError("not a shard", str(e)) from e
        if f.dtype not in ITEMSIZE:
            raise DecodeError("not a shard", f.dtype)
        nbytes = math.prod(f.shape) * ITEMSIZE[f.dtype]
        return cls(f.id, f.owner, f.addresses, f.backend, f.where, f.dtype, f.shape, nbytes)


class _Fields(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """A shard on the wire."""

    id: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{32}$", max_length=32)]
    owner: str
    addresses: tuple[str, ...]
    backend: str
    where: Where
    dtype: str
    shape: Annotated[tuple[Annotated[int, msgspec.Meta(ge=0)], ...], msgspec.Meta(max_length=64)]


def _sequence(value: Any) -> list[Any]:
    if not isinstance(value, list | tuple):
        raise DecodeError("not a sequence", type(value).__name__)
    return list(value)


def shape_of(value: Any) -> tuple[int, ...]:
    """`value` as a shape.

    Raises:
        DecodeError: It is not a shape.
    """
    shape = tuple(_sequence(value))
    if len(shape) > 64 or not all(type(n) is int and n >= 0 for n in shape):
        raise DecodeError("not a shape", shape[:64])
    return shape
