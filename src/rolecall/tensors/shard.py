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
        key: What identifies the shard in every process.
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
    key: tuple[str, str] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.key = self.owner, self.id

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
            return cls.from_form(msgspec.convert(plain, ShardForm))
        except msgspec.ValidationError as e:
            raise DecodeError("not a shard", str(e)) from e

    @classmethod
    def from_form(cls, form: ShardForm) -> Shard:
        """As `from_plain`, when all but the dtype is checked."""
        if form.dtype not in ITEMSIZE:
            raise DecodeError("not a shard", form.dtype)
        nbytes = math.prod(form.shape) * ITEMSIZE[form.dtype]
        return cls(form.id, form.owner, form.addresses, form.backend, form.where, form.dtype, form.shape, nbytes)


Count = Annotated[int, msgspec.Meta(ge=0)]
Shape = Annotated[tuple[Count, ...], msgspec.Meta(max_length=64)]


class ShardForm(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True, gc=False):
    """A shard on the wire."""

    id: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{32}$", max_length=32)]
    owner: str
    addresses: tuple[str, ...]
    backend: str
    where: Where
    dtype: str
    shape: Shape
