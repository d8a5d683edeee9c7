"""The walk over a value, both ways, and the table of rules it follows. It knows no type beyond what msgpack has.

A value becomes msgpack. What msgpack has no form for is an extension of ours: a code and, inside, msgpack again. Large
memory stays outside, in buffers that the inside names by number. Which type has which code and form is in the files
around this one (`plain_codec`, `type_codec`, `exception_codec`, `array_codec`, `tensor_codec`), which add their rules
to the tables here. Codes below 0 are ours, codes above 0 belong to `codec.extension`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from msgspec import Raw, msgpack

from rolecall.errors import DecodeError
from rolecall.transport.codec.native import MANY, NATIVE, NATIVE_CONTAINERS, floats, foreign_level
from rolecall.transport.codec.native import encode as pack_plain
from rolecall.transport.codec.places import step
from rolecall.transport.frames import MAX_DEPTH

Encode: TypeAlias = "Callable[[Writer, Any], Any]"
Decode: TypeAlias = "Callable[[Reader, memoryview], Any]"
Swap: TypeAlias = Callable[[Any], Any]
Rows: TypeAlias = "Callable[[Writer, Sequence[Any]], Any]"

CAREFUL = NATIVE - {int, str}  # what msgpack takes whatever its value is

ENCODERS: dict[type, tuple[Encode, bool]] = {}
DECODERS: dict[int, Decode] = {}
LISTED_TYPES: dict[int, Callable[[Any, Any], Any]] = {}  # makes the objects that lie in a list before the value
TABLE, LISTED = -64, -65  # objects that lie in a list before the value, and what stands for one in the value
RESOLVERS: list[Callable[[type], tuple[Encode, bool] | None]] = []
ROWS: dict[type, Rows] = {}  # for lists of one type; a rule returns None for a list that it does not take
FEW = 4  # items from which on columns are the faster form
SIZED = frozenset({list, tuple, dict})
MOST_ITEMS = 1 << 23  # of all rows of one list together: one that contains itself many times multiplies on each level
MOST_ROWS = 1 << 22  # of one value: a row that arrives in columns may take a byte and becomes an object

unpack_plain = msgpack.decode

TOO_DEEP = f"it contains itself, or is nested deeper than {MAX_DEPTH} levels"


class Refused(Exception):
    """A value does not travel. On its way up it learns where the value lies; nothing is spent on that otherwise."""

    def __init__(self, value: Any, hint: str = "") -> None:
        self.value, self.hint = value, hint
        self._child = value
        self._steps: list[tuple[int, str]] = []  # innermost first: the parent's identity, the step down from it

    def rise(self, parent: Any, original: Any) -> None:
        """Notes the step from `parent` to where the refusal is now. `original` is what `parent` was before a swap."""
        if parent is not self._child:
            self._steps.append((id(parent), step(parent, self._child)))
        self._child = original

    def place(self, root: str) -> str:
        seen: set[int] = set()
        for parent, text in reversed(self._steps):
            if parent in seen:  # a cycle: once around says it all
                break
            seen.add(parent)
            root += text
        return root


def leaf(kind: type, encode: Encode) -> None:
    """Adds the rule for a type without values of the user's inside; `swap` is applied to it."""
    ENCODERS[kind] = (encode, True)


def container(kind: type, encode: Encode) -> None:
    """Adds the rule for a type that holds values; `swap` is applied to those, not to it."""
    ENCODERS[kind] = (encode, False)


def _refuse(writer: Writer, value: Any) -> Any:
    raise Refused(value)


def _find(kind: type) -> tuple[Encode, bool]:
    for resolve in RESOLVERS:
        found = resolve(kind)
        if found is not None:
            ENCODERS[kind] = found
            return found
    return _refuse, True


class Writer:
    """Turns one value into what msgspec can encode, and collects its buffers.

    At first it decides for many values at a time what msgpack holds as it is, and writes lists of like items as
    columns. After a refusal it starts over, looks at every value, and so finds what is refused and where it lies.
    """

    __slots__ = ("_columned", "_depth", "_listed", "_swap", "_swapped", "_walked", "buffers", "native")

    def __init__(self, swap: Swap | None = None) -> None:
        self.buffers: list[memoryview] = []
        self.native = NATIVE
        self._swap = swap
        self._swapped: dict[int, tuple[Any, Any]] = {}
        self._depth = 0
        self._listed: dict[int, tuple[Any, int, int, Any]] = {}  # by identity; holds the object, too
        self._columned = 0  # rows written as columns
        self._walked = 0  # levels above this one were looked at already and hold something foreign

    def start_over(self) -> None:
        """Makes the writer look at every value by itself, int and str as well. What was swapped stays swapped."""
        self.buffers, self.native, self._depth = [], CAREFUL, 0
        self._listed.clear()

    def plain(self, value: Any) -> Any:
        """Returns `value` in a form that msgspec encodes.

        Raises:
            Refused: It, or something in it, does not travel.
        """
        kind = type(value)
        if kind in self.native:
            return value
        encode, is_leaf = ENCODERS.get(kind) or _find(kind)
        original = value
        if is_leaf and self._swap is not None:
            value = self._swap_once(value)
            if value is not original:
                kind = type(value)
                if kind in self.native:
                    return value
                encode, _ = ENCODERS.get(kind) or _find(kind)
        if self._depth >= MAX_DEPTH:
            raise Refused(value, TOO_DEEP)
        self._depth += 1
        try:
            return encode(self, value)
        except Refused as refused:
            refused.rise(value, original)
            raise
        finally:
            self._depth -= 1

    def column(self, values: Sequence[Any]) -> Any:
        """`values` in a form that arrives as a list of them."""
        if self.native is CAREFUL or not values:
            return self._each(values)
        kind = type(values[0])
        if kind is float and len(values) >= MANY and (packed := floats(values)) is not None:
            return Raw(packed)
        if kind in NATIVE_CONTAINERS and self.fit(values):
            return values
        rows = self._rows(kind, values) if len(values) >= FEW else None
        return self._each(values) if rows is None else rows

    def fit(self, values: Sequence[Any]) -> bool:
        """Whether msgpack holds all of these as they are."""
        if len(values) < MANY or self.native is CAREFUL:
            kinds = set(map(type, values))
            if kinds <= self.native:
                return True
            if self.native is CAREFUL or not kinds <= NATIVE_CONTAINERS:
                return False
        if self._depth < self._walked:
            return False
        level = foreign_level(values, MAX_DEPTH - self._depth)
        if level is None:
            return True
        self._walked = self._depth + level
        return False

    def _each(self, values: Sequence[Any]) -> Sequence[Any]:
        plain = self.plain
        return [plain(value) for value in values]

    def _rows(self, kind: type, values: Sequence[Any]) -> Any:
        if kind not in ENCODERS:
            _find(kind)
        rule = ROWS.get(kind)
        self._columned += len(values)
        if (
            rule is None
            or self._depth >= MAX_DEPTH
            or self._columned > MOST_ROWS
            or [*map(type, values)].count(kind) != len(values)
            or (kind in SIZED and sum(map(len, values)) > MOST_ITEMS)
        ):
            return None
        self._depth += 1
        try:
            return rule(self, values)
        finally:
            self._depth -= 1

    def extension(self, code: int, payload: Any) -> msgpack.Ext:
        """Wraps `payload`, which must be plain already."""
        return msgpack.Ext(code, pack_plain(payload))

    def listed(self, code: int, value: Any, form: Callable[[Any], Any]) -> msgpack.Ext:
        """Puts `form(value)` into the list before the value. Returns what stands for it: its number there."""
        known = self._listed.get(id(value))
        if known is None:
            known = self._listed[id(value)] = (value, len(self._listed), code, form(value))
        return msgpack.Ext(LISTED, pack_plain(known[1]))

    def header(self, value: Any) -> bytes:
        """`value` as bytes, behind the list of what it refers to."""
        body = pack_plain(self.plain(value))
        if not self._listed:
            return body
        codes, forms = ([entry[i] for entry in self._listed.values()] for i in (2, 3))
        return pack_plain(self.extension(TABLE, [codes, self.column(forms), body]))

    def buffer(self, memory: memoryview, inline: int) -> int | bytes:
        """Hands over flat `memory`. Returns what stands for it: a number, or the bytes when there are few."""
        if len(memory) <= inline:
            return memory.tobytes()
        self.buffers.append(memory)
        return len(self.buffers) - 1

    def _swap_once(self, value: Any) -> Any:
        assert self._swap is not None
        known = self._swapped.get(id(value))
        if known is None:
            known = self._swapped[id(value)] = (value, self._swap(value))
        return known[1]


class Reader:
    """Turns msgpack back into one value.

    Nesting is bounded by `MAX_DEPTH` for extensions and by the interpreter's recursion limit for plain lists and dicts,
    which msgspec reads without us. Counts are bounded by the input: it takes memory for an item when it has read it.
    """

    __slots__ = ("_body", "_buffers", "_depth", "_rows", "_table", "context")

    def __init__(self, buffers: Sequence[Any], context: Any = None) -> None:
        self.context = context
        self._buffers = buffers
        self._depth = self._rows = 0
        self._table: Sequence[Any] = ()
        self._body: bytes | None = None

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
        value = self.value(header)
        if self._body is None:
            return [], value
        return list(self._table), None

    def closed(self, listed: Sequence[Any]) -> Any:
        """Decodes the value behind a list, with these in the place of what was listed."""
        body, self._body, self._table = self._body, None, listed
        if body is None:
            raise DecodeError("a value is decoded once")
        return self.value(body)

    def table(self, data: memoryview) -> None:
        """Reads the list before the value; it is the first thing in a header, and stands there once."""
        if self._depth != 1 or self._body is not None or self._table:
            raise DecodeError("a list of references inside a value")
        codes, forms, body = self.items(data, 3)
        if type(codes) is not list or type(forms) is not list or type(body) is not bytes or not codes:
            raise DecodeError("a list of references is not the list that it must be")
        if not LISTED_TYPES.keys() >= set(codes):
            raise DecodeError("unknown code of a reference")
        context = self.context
        self._table = [LISTED_TYPES[code](form, context) for code, form in zip(codes, forms, strict=True)]
        self._body = body

    def listed(self, data: memoryview) -> Any:
        number = self.value(data)
        if type(number) is not int or not 0 <= number < len(self._table):
            raise DecodeError("no reference of that number", number)
        return self._table[number]

    def value(self, data: memoryview | bytes) -> Any:
        """Decodes what `Writer.extension` wrapped."""
        return unpack_plain(data, ext_hook=self.hook)

    def items(self, data: memoryview | bytes, count: int | None = None) -> list[Any]:
        """The same, where it must be a list (of `count` items)."""
        found = self.value(data)
        if type(found) is not list or (count is not None and len(found) != count):
            raise DecodeError("an extension's content is not the list that it must be")
        return found

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

    def text(self, data: memoryview | bytes) -> str:
        """The same, where it must be a str."""
        found = self.value(data)
        if type(found) is not str:
            raise DecodeError("an extension's content is not the text that it must be", type(found).__name__)
        return found

    def buffer(self, ref: Any) -> memoryview:
        """The memory that `Writer.buffer` stood for, flat and, when it was received, writable."""
        if type(ref) is bytes:
            return memoryview(bytearray(ref))
        if type(ref) is not int or not 0 <= ref < len(self._buffers):
            raise DecodeError("no buffer of that number", ref)
        return memoryview(self._buffers[ref]).cast("B")


DECODERS[TABLE] = Reader.table
DECODERS[LISTED] = Reader.listed
