"""A shard: one stored piece of memory that handles point to. It knows where its bytes are and never holds them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rolecall.errors import DecodeError
from rolecall.tensors.dtypes import ITEMSIZE

if TYPE_CHECKING:
    from rolecall.tensors.binding import Keeper

Where = dict[str, str | int]


@dataclass(slots=True, weakref_slot=True, eq=False)
class Shard:
    """One stored tensor on its owner.

    Attributes:
        id: Unique for ever: 32 hexadecimal digits.
        owner: Id of the worker that stores it.
        addresses: Where the owner listens: `unix:/path`, `tcp:host:port`.
        backend: Name of the backend that holds the bytes.
        where: What that backend needs to find them; plain values.
        dtype: Name of the dtype, `float32`.
        shape: Shape of the stored tensor; its elements lie row by row.
        nbytes: Size of the elements.
        keeper: Set in the process that answers for it; None where it is borrowed.
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
    keeper: Keeper | None = field(default=None, repr=False)
    freed: bool = field(default=False, repr=False)

    @property
    def key(self) -> tuple[str, str]:
        """What makes it the same shard wherever it is met."""
        return self.owner, self.id

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    def to_plain(self) -> list[Any]:
        """The shard as plain values, for the codec."""
        return [self.id, self.owner, [*self.addresses], self.backend, self.where, self.dtype, [*self.shape]]

    @classmethod
    def from_plain(cls, plain: Any) -> Shard:
        """The shard that `to_plain` wrote down.

        Raises:
            DecodeError: The values are none of a shard.
        """
        try:
            shard_id, owner, addresses, backend, where, dtype, shape = plain
        except (TypeError, ValueError) as e:
            raise DecodeError("not a shard", type(plain).__name__) from e
        texts = (shard_id, owner, backend, dtype, *_sequence(addresses))
        if not all(isinstance(text, str) for text in texts) or dtype not in ITEMSIZE or not _is_id(shard_id):
            raise DecodeError("not a shard", shard_id)
        if not isinstance(where, dict) or not all(isinstance(v, str | int) for v in where.values()):
            raise DecodeError("not a shard's place", shard_id)
        size = shape_of(shape)
        return cls(shard_id, owner, tuple(addresses), backend, where, dtype, size, math.prod(size) * ITEMSIZE[dtype])


def _is_id(text: str) -> bool:
    try:
        return len(bytes.fromhex(text)) == 16
    except ValueError:
        return False


def _sequence(value: Any) -> list[Any]:
    if not isinstance(value, list | tuple):
        raise DecodeError("not a sequence", type(value).__name__)
    return list(value)


def shape_of(value: Any) -> tuple[int, ...]:
    """`value` as a shape.

    Raises:
        DecodeError: It is none.
    """
    shape = tuple(_sequence(value))
    if len(shape) > 64 or not all(type(n) is int and n >= 0 for n in shape):
        raise DecodeError("not a shape", shape[:64])
    return shape
