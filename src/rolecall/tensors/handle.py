"""`RTensor`: dtype, shape and whereabouts of a tensor or array that stayed on its worker.

A handle is a list of pieces, each a range of elements of a stored shard, laid one after the other and read in the
handle's shape. Everything that takes whole rows (`cat` and `split` along the first axis, indexing it) is arithmetic on
those ranges; no byte moves. The module imports neither torch nor numpy by itself, and a handle never changes.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any, Literal, NamedTuple, NoReturn, SupportsIndex

import msgspec

from rolecall.errors import DecodeError
from rolecall.tensors.dtypes import NUMPY, Dense, empty, itemsize, native_dtype
from rolecall.tensors.shard import Count, Shape, Shard, ShardManager, binding, grouped
from rolecall.transport import codec

__all__ = ["Piece", "RTensor", "Shard"]

CODE = 1  # of handles among the codec's extensions


class Piece(NamedTuple):
    """Elements `start` to `stop` of a shard."""

    shard: Shard
    start: int
    stop: int


class RTensor:
    """Handle of a torch tensor, or of a numpy array, that lies on one worker or several.

    Equality and hash are by identity. `rolecall.localize(x)` (or `x.localize()`) gives the tensor or array.

    Attributes:
        dtype_name: Name of its dtype: `float32`, `numpy:<f4`.
        shape: Its shape.
        pieces: The ranges of elements it is made of, in order, neighbours joined.
    """

    __slots__ = ("__weakref__", "_ends", "dtype_name", "pieces", "shape")

    def __init__(self, dtype: str, shape: Sequence[int], pieces: Sequence[Piece]) -> None:
        self.dtype_name = dtype
        self.shape = tuple(shape)
        self.pieces, self._ends = _joined(pieces)
        if (self._ends[-1] if self._ends else 0) != math.prod(self.shape):
            raise ValueError(f"pieces of {self._ends[-1:]} elements do not make a tensor of shape {self.shape}")

    @classmethod
    def of(cls, shard: Shard) -> RTensor:
        """The handle of a whole shard."""
        return cls(shard.dtype, shard.shape, [Piece(shard, 0, shard.numel)])

    @property
    def dtype(self) -> Any:
        """The dtype of torch or numpy, which it imports; `dtype_name` is its name: `float32`, `numpy:<f4`."""
        return native_dtype(self.dtype_name)

    @property
    def kind(self) -> Literal["torch", "numpy"]:
        """What `localize` gives: a torch tensor, or a numpy array."""
        return "numpy" if self.dtype_name.startswith(NUMPY) else "torch"

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        return self.numel() * itemsize(self.dtype_name)

    @property
    def shards(self) -> list[Shard]:
        """The shards it points to, each once."""
        return list(dict.fromkeys(piece.shard for piece in self.pieces))

    def numel(self) -> int:
        return math.prod(self.shape)

    def dim(self) -> int:
        return len(self.shape)

    def size(self, dim: int | None = None) -> Any:
        return self.shape if dim is None else self.shape[dim]

    @classmethod
    def cat(cls, tensors: Sequence[RTensor], dim: int = 0) -> RTensor:
        """Handles joined along the first axis, as `torch.cat`.

        Raises:
            ValueError: The axis is not the first one (its bytes would have to move), or the shapes do not fit.
            TypeError: A dtype differs, tensors are joined with arrays, or something in the list is no handle.
        """
        if not tensors:
            raise ValueError("cat of no handles")
        if not all(isinstance(t, cls) for t in tensors):
            kinds = sorted({type(t).__name__ for t in tensors})
            raise TypeError(f"RTensor.cat takes handles, got {kinds}; rolecall.localize(x) gives tensors for torch.cat")
        parts = [t for t in tensors if t.shape != (0,)] or list(tensors[:1])  # torch skips empty 1-D tensors as well
        first = parts[0]
        if any(t.ndim == 0 for t in parts):
            raise ValueError("0-d handles cannot be joined by cat; use RTensor.stack")
        _first_axis(dim, first.ndim, "cat")
        for other in parts[1:]:
            if other.shape[1:] != first.shape[1:]:
                raise ValueError(f"cat of shapes {first.shape} and {other.shape}: only the first axis may differ")
        rows = sum(t.shape[0] for t in parts)
        return cls(_one_dtype(tensors), (rows, *first.shape[1:]), [p for t in parts for p in t.pieces])

    @classmethod
    def stack(cls, tensors: Sequence[RTensor]) -> RTensor:
        """Handles of one shape as rows of a new first axis, as `torch.stack`."""
        if not tensors or any(t.shape != tensors[0].shape for t in tensors):
            raise ValueError(f"stack needs handles of one shape, got {[t.shape for t in tensors]}")
        return cls(_one_dtype(tensors), (len(tensors), *tensors[0].shape), [p for t in tensors for p in t.pieces])

    def split(self, split_size: int | Sequence[int], dim: int = 0) -> tuple[RTensor, ...]:
        """Parts along the first axis, as `torch.split`: of that many rows, or of the rows in the list."""
        rows = self._rows("split")
        _first_axis(dim, self.ndim, "split")
        if isinstance(split_size, int):
            if split_size < 0 or (split_size == 0 and rows):
                raise ValueError(f"split of {rows} rows by {split_size}")
            starts = range(0, rows, split_size) if rows else [0]
            return tuple(self._cut(low, min(low + split_size, rows)) for low in starts)
        if sum(split_size) != rows or any(n < 0 for n in split_size):
            raise ValueError(f"split of {rows} rows into {list(split_size)}: the sizes must add up to the rows")
        return tuple(self._cut(end - n, end) for n, end in zip(split_size, accumulate(split_size), strict=True))

    def chunk(self, chunks: int, dim: int = 0) -> tuple[RTensor, ...]:
        """At most `chunks` parts along the first axis, as `torch.chunk`."""
        rows = self._rows("chunk")
        if chunks < 1:
            raise ValueError(f"chunk into {chunks} parts; use 1 or more")
        return self.split(-(-rows // chunks), dim) if rows else self.split([0] * chunks, dim)

    def __len__(self) -> int:
        return self._rows("len")

    def __iter__(self) -> Iterator[RTensor]:
        return (self._row(i) for i in range(self._rows("iteration")))

    def __getitem__(self, index: Any) -> RTensor:
        """Rows by integer, slice, list or 1-D tensor of row numbers, or a mask over the rows."""
        rows = self._rows("indexing")
        if isinstance(index, slice):
            low, high, step = index.indices(rows)
            return self._cut(low, max(low, high)) if step == 1 else self._take(range(low, high, step))
        if hasattr(index, "tolist"):
            index = index.tolist()
        if isinstance(index, list):
            return self._take(_row_numbers(index, rows))
        if isinstance(index, bool) or not isinstance(index, SupportsIndex):
            raise TypeError(
                f"a handle is indexed along its first axis by int, slice or list, not {type(index).__name__}; "
                "rolecall.localize(x) gives the tensor"
            )
        return self._row(_row_number(index.__index__(), rows))

    def localize(self) -> Dense:
        """The tensor; blocks. `rolecall.localize` fetches many at once."""
        return fetch([self])[0]

    async def alocalize(self) -> Dense:
        """The tensor, without blocking the loop."""
        return (await afetch([self]))[0]

    def __repr__(self) -> str:
        owners = ", ".join(dict.fromkeys(shard.owner for shard in self.shards)) or "no bytes"
        pieces = f", {len(self.pieces)} pieces" if len(self.pieces) > 1 else ""
        return f"RTensor({list(self.shape)}, {self.dtype_name}, on {owners}{pieces})"

    def __copy__(self) -> RTensor:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> RTensor:
        return self

    def __reduce__(self) -> NoReturn:
        raise TypeError("a handle is not pickled: the copy could not keep its bytes alive; rolecall.localize(x) first")

    def __getattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"RTensor has no attribute {name!r}; rolecall.localize(x) gives the tensor")

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> NoReturn:
        raise _needs_tensor(f"torch function {getattr(func, '__name__', func)!r}")

    def _rows(self, what: str) -> int:
        if not self.shape:
            raise TypeError(f"{what} of a 0-d handle")
        return self.shape[0]

    def _row(self, number: int) -> RTensor:
        return RTensor(self.dtype_name, self.shape[1:], self._elements(number, number + 1))

    def _cut(self, low: int, high: int) -> RTensor:
        return RTensor(self.dtype_name, (high - low, *self.shape[1:]), self._elements(low, high))

    def _take(self, numbers: Sequence[int]) -> RTensor:
        pieces = [piece for n in numbers for piece in self._elements(n, n + 1)]
        return RTensor(self.dtype_name, (len(numbers), *self.shape[1:]), pieces)

    def _elements(self, low_row: int, high_row: int) -> list[Piece]:
        """The pieces of rows `low_row` to `high_row`."""
        row = math.prod(self.shape[1:])
        low, high = low_row * row, high_row * row
        if low == high:
            return []
        first, last = bisect_right(self._ends, low), bisect_left(self._ends, high)
        cut = []
        for at in range(first, last + 1):
            shard, start, stop = self.pieces[at]
            origin = self._ends[at] - (stop - start)  # where this piece begins in the handle
            cut.append(Piece(shard, start + max(0, low - origin), min(stop, start + high - origin)))
        return cut


def fetch(handles: Sequence[RTensor]) -> list[Dense]:
    """The tensors of these handles; each owner is asked once, all at the same time.

    Raises:
        ShardNotFoundError: Shards were freed, or their owner is gone.
    """
    found = {manager: iter(manager.fetcher.fetch(group)) for manager, group in _by_manager(handles).items()}
    return _in_order(handles, found)


async def afetch(handles: Sequence[RTensor]) -> list[Dense]:
    """As `fetch`, for a task."""
    found = {manager: iter(await manager.fetcher.afetch(group)) for manager, group in _by_manager(handles).items()}
    return _in_order(handles, found)


def _by_manager(handles: Sequence[RTensor]) -> dict[ShardManager, list[RTensor]]:
    """Handles with pieces, by who fetches them; in a controller of several runs that may be several."""
    return grouped((handle for handle in handles if handle.pieces), lambda handle: binding.of(handle.pieces[0].shard))


def _in_order(handles: Sequence[RTensor], found: dict[ShardManager, Iterator[Dense]]) -> list[Dense]:
    return [
        next(found[binding.of(handle.pieces[0].shard)]) if handle.pieces else empty(handle.dtype_name, handle.shape)
        for handle in handles
    ]


class _Form(msgspec.Struct, array_like=True, forbid_unknown_fields=True, gc=False):
    """A handle on the wire. Pieces name their shard by its number in the list of all handles."""

    dtype: str
    shape: Shape
    pieces: list[tuple[Count, Count, Count]]


class _Forms(msgspec.Struct, array_like=True, forbid_unknown_fields=True, gc=False):
    """The handles of one value; each shard once."""

    shards: list[Shard]
    handles: list[_Form]


_reader = msgspec.msgpack.Decoder(_Forms)


def pack_handles(handles: Sequence[RTensor]) -> bytes:
    """The handles of one value, for the codec."""
    shards = list(dict.fromkeys(piece.shard for handle in handles for piece in handle.pieces))
    numbers = {shard: number for number, shard in enumerate(shards)}
    forms = [_Form(h.dtype_name, h.shape, [(numbers[p.shard], p.start, p.stop) for p in h.pieces]) for h in handles]
    return msgspec.msgpack.encode(_Forms(shards, forms))


def read_handles(packed: bytes, context: Any = None) -> list[RTensor]:
    """The handles that `pack_handles` wrote.

    Args:
        context: A `Home`, which then answers for the shards; anything else: they are borrowed.

    Raises:
        DecodeError: The bytes are none of handles, or point outside their shards.
    """
    try:
        forms = _reader.decode(packed)
        for form in forms.handles:
            if not itemsize(form.dtype):
                raise DecodeError("no dtype of a handle", form.dtype)
            for number, start, stop in form.pieces:
                shard = forms.shards[number]
                if not start <= stop <= shard.numel or shard.dtype != form.dtype:
                    raise DecodeError("a handle points outside its shard, or has another dtype")
        adopt = getattr(context, "adopt", None)
        shards = forms.shards if adopt is None else [*map(adopt, forms.shards)]
        return [
            RTensor(form.dtype, form.shape, [Piece(shards[n], start, stop) for n, start, stop in form.pieces])
            for form in forms.handles
        ]
    except (msgspec.DecodeError, ValueError, IndexError) as e:
        raise DecodeError(f"not a handle: {e}") from e


codec.extension(CODE, RTensor, pack_handles, read_handles)


def _needs_tensor(what: str) -> TypeError:
    return TypeError(f"{what} needs the tensor, not its handle: use rolecall.localize(x)")


def _refusing(name: str) -> Any:
    def refuse(self: RTensor, *args: Any, **kwargs: Any) -> NoReturn:
        raise _needs_tensor(f"{name} of a handle")

    refuse.__name__ = name
    return refuse


_BINARY = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and", "or", "xor", "lshift", "rshift")
_OTHER = ("lt", "le", "gt", "ge", "neg", "pos", "invert", "abs", "setitem")
_CONVERSIONS = ("bool", "int", "float", "complex", "array", "dlpack", "dlpack_device")  # torch.as_tensor asks the last
for _name in (*_BINARY, *(f"r{name}" for name in _BINARY), *_OTHER, *_CONVERSIONS):
    setattr(RTensor, f"__{_name}__", _refusing(f"__{_name}__"))


def _joined(pieces: Sequence[Piece]) -> tuple[tuple[Piece, ...], list[int]]:
    """The pieces without empty ones, each joined with the next where that goes on in the same shard; where they end."""
    out: list[Piece] = []
    ends: list[int] = []
    end = 0
    if len(pieces) == 1 and pieces[0].start < pieces[0].stop:
        return tuple(pieces), [pieces[0].stop - pieces[0].start]
    for piece in pieces:
        shard, start, stop = piece
        if start == stop:
            continue
        end += stop - start
        if out and out[-1].shard is shard and out[-1].stop == start:
            out[-1], ends[-1] = Piece(shard, out[-1].start, stop), end
        else:
            out.append(piece)
            ends.append(end)
    return tuple(out), ends


def _one_dtype(tensors: Sequence[RTensor]) -> str:
    names = sorted({t.dtype_name for t in tensors})
    if len(names) > 1:
        raise TypeError(f"handles of dtypes {names} cannot be joined without changing bytes; localize them first")
    return names[0]


def _first_axis(dim: int, ndim: int, what: str) -> None:
    if not -ndim <= dim < ndim:
        raise IndexError(f"{what} along axis {dim} of a handle with {ndim} axes")
    if dim % ndim:
        raise ValueError(f"{what} along axis {dim} would move bytes; a handle does it along axis 0 only (localize it)")


def _row_number(number: int, rows: int) -> int:
    if not -rows <= number < rows:
        raise IndexError(f"row {number} of a handle with {rows} rows")
    return number % rows


def _row_numbers(index: list[Any], rows: int) -> list[int]:
    if index and all(isinstance(i, bool) for i in index):
        if len(index) != rows:
            raise IndexError(f"a mask of {len(index)} for {rows} rows")
        return [i for i, taken in enumerate(index) if taken]
    if not all(isinstance(i, int) and not isinstance(i, bool) for i in index):
        raise TypeError("rows are taken by a flat list of integers or booleans")
    return [_row_number(i, rows) for i in index]
