"""A shard: one stored piece of memory that handles point to. It knows where its bytes are and never holds them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import msgspec

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
            form = msgspec.convert(plain, _Form)
        except msgspec.ValidationError as e:
            raise DecodeError("not a shard", str(e)) from e
        if form.dtype not in ITEMSIZE:
            raise DecodeError("not a shard", form.dtype)
        nbytes = math.prod(form.shape) * ITEMSIZE[form.dtype]
        return cls(form.id, form.owner, form.addresses, form.backend, form.where, form.dtype, form.shape, nbytes)


class _Form(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
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
        DecodeError: It is none.
    """
    shape = tuple(_sequence(value))
    if len(shape) > 64 or not all(type(n) is int and n >= 0 for n in shape):
        raise DecodeError("not a shape", shape[:64])
    return shape
