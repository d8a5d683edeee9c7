"""The reader turns msgpack back into a value, with the rules in `DECODERS`. It trusts nothing that it reads.

What msgpack has no form for is an extension of ours: a code and, inside, msgpack again. Large memory stays outside, in
buffers that the inside names by number. Which type has which code and form is in the files around this one (`plain`,
`rows`, `user_types`, `exceptions`, `arrays`, `tensors`), which add their rules here and to the writer's `ENCODERS`.
Codes below 0 are ours, codes above 0 belong to `codec.extension`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

from msgspec import msgpack

from rolecall.errors import DecodeError
from rolecall.transport.codec import type_names
from rolecall.transport.frames import MAX_DEPTH

T = TypeVar("T")

DECODERS: dict[int, Callable[[Reader, memoryview], Any]] = {}


class Listed(NamedTuple):
    """A type of another layer: how the objects of a value become bytes, and objects again."""

    pack: Callable[[Sequence[Any]], bytes]
    read: Callable[[bytes, Any], list[Any]]


LISTED_TYPES: dict[int, Listed] = {}
TUPLES = -66  # a list of tuples that hold what msgpack holds, packed as lists are
TABLE, LISTED = -64, -65  # objects that lie in a list before the value, and what stands for one in the value
WHOLE = -67  # all of it lies in a buffer
MOST_ROWS = 1 << 22  # of one value: a row that arrives in columns may take a byte and becomes an object

unpack_plain = msgpack.decode
_number = msgpack.Decoder(int).decode


class Reader:
    """Turns msgpack back into one value.

    Nesting is bounded by `MAX_DEPTH` for extensions and by the interpreter's recursion limit for plain lists and dicts,
    which msgspec reads without us. Counts are bounded by the input: it takes memory for an item when it has read it.
    """

    __slots__ = ("_body", "_buffers", "_depth", "_imports", "_rows", "_table", "_whole", "context")

    def __init__(self, buffers: Sequence[Any], context: Any = None, *, imports: bool = False) -> None:
        self.context, self._imports = context, imports
        self._buffers = buffers
        self._depth = self._rows = 0
        self._table: Sequence[Any] = ()
        self._body: bytes | None = None
        self._whole: memoryview | None = None

    def hook(self, code: int, data: memoryview) -> Any:
        decode = DECODERS.get(code)
        if decode is None:
            raise DecodeError("unknown code of an extension", code)
        if self._depth > MAX_DEPTH:
            raise DecodeError("nested too deep", self._depth)
        self._depth += 1
        try:
            return decode(self, data)
        finally:
            self._depth -= 1

    def opened(self, header: bytes | memoryview) -> tuple[list[Any], Any]:
        """Decodes a header up to the value. Returns what is listed before it, and the value when nothing is."""
        value = unpack_plain(header, ext_hook=self.hook)
        if self._whole is not None:
            value = self.value(self._whole)
        if self._body is None:
            return [], value
        return list(self._table), None

    def closed(self, listed: Sequence[Any]) -> Any:
        """Decodes the value behind a list, with these in the place of what was listed."""
        body, self._body, self._table = self._body, None, listed
        if body is None:
            raise DecodeError("a value is decoded once")
        return self.value(body)

    def whole(self, data: memoryview) -> None:
        """Notes the buffer that the value lies in; there is nothing beside it."""
        if self._depth != 1 or self._whole is not None:
            raise DecodeError("a whole value inside a value")
        self._whole = self.buffer(_number(data))

    def table(self, data: memoryview) -> None:
        """Reads the list before the value; it is the first thing in a header, and stands there once."""
        if self._depth != 1 or self._body is not None or self._table:
            raise DecodeError("a list of references inside a value")
        code, packed, body = self.items(data, 3)
        if type(code) is not int or type(packed) is not bytes or type(body) is not bytes:
            raise DecodeError("a list of references is not the list that it must be")
        if code not in LISTED_TYPES:
            raise DecodeError("unknown code of a reference", code)
        self._table = LISTED_TYPES[code].read(packed, self.context)
        if not self._table:
            raise DecodeError("an empty list of references")
        self._body = body

    def listed(self, data: memoryview) -> Any:
        number = _number(data)
        if not 0 <= number < len(self._table):
            raise DecodeError("no reference of that number", number)
        return self._table[number]

    def resolve(self, name: Any, kind: type, is_kind: Callable[[type], bool] | None = None, called: str = "") -> Any:
        """The class of that name; see `type_names`."""
        return type_names.resolve(name, kind, is_kind, called, imports=self._imports)

    def value(self, data: memoryview | bytes) -> Any:
        """Decodes what `Writer.extension` wrapped."""
        return unpack_plain(data, ext_hook=self.hook)

    def items(self, data: memoryview | bytes, count: int | None = None) -> list[Any]:
        """The same, where it must be a list (of `count` items)."""
        found = self.value(data)
        if type(found) is not list or (count is not None and len(found) != count):
            raise DecodeError("an extension's content is not the list that it must be")
        return found

    def tuples(self, data: memoryview | bytes) -> list[tuple[Any, ...]]:
        """The same, where it must be a list of lists, which become tuples."""
        return unpack_plain(data, type=list[tuple[Any, ...]], ext_hook=self.hook)

    def columns(self, found: list[Any]) -> list[list[Any]]:
        """The columns that arrived, when they are such.

        Raises:
            DecodeError: There are none, one is no list, they differ in length, or there are too many rows.
        """
        if set(map(type, found)) != {list} or len(set(map(len, found))) != 1:
            raise DecodeError("columns are not lists of one length")
        self.count(len(found[0]))
        return found

    def count(self, rows: int) -> None:
        """Notes objects that will be made from columns.

        Raises:
            DecodeError: They are more than one value may have.
        """
        self._rows += rows
        if self._rows > MOST_ROWS:
            raise DecodeError("too many rows", self._rows)

    def content(self, data: memoryview | bytes, kind: type[T]) -> T:
        """The same, where it must be exactly of that type."""
        found = self.value(data)
        if type(found) is not kind:
            raise DecodeError(f"an extension's content is no {kind.__name__}", type(found).__name__)
        return found

    def buffer(self, ref: Any) -> memoryview:
        """The memory that `Writer.buffer` stood for, flat and, when it was received, writable."""
        if type(ref) is bytes:
            return memoryview(bytearray(ref))
        if type(ref) is not int or not 0 <= ref < len(self._buffers):
            raise DecodeError("no buffer of that number", ref)
        return memoryview(self._buffers[ref]).cast("B")


DECODERS[TUPLES] = Reader.tuples
DECODERS[TABLE] = Reader.table
DECODERS[LISTED] = Reader.listed
DECODERS[WHOLE] = Reader.whole
