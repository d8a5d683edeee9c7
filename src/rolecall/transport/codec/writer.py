"""The writer turns a value into msgpack. It knows no type beyond what msgpack has; the others have rules in `ENCODERS`.

See `reader` for what an extension is and where the rules are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from msgspec.msgpack import Ext

from rolecall.transport.codec.native import ALL_NATIVE, FOREIGN, MOST, NATIVE, NATIVE_TUPLES, scan
from rolecall.transport.codec.native import encode as pack_plain
from rolecall.transport.codec.places import Refused
from rolecall.transport.codec.reader import LISTED, LISTED_TYPES, MOST_ROWS, TABLE, TUPLES
from rolecall.transport.frames import MAX_DEPTH

CAREFUL = NATIVE - {int, str}  # what msgpack takes whatever its value is
FEW = 6  # items from which on a form for many is the faster one
TOO_DEEP = f"it contains itself, or is nested deeper than {MAX_DEPTH} levels"

Encode: TypeAlias = "Callable[[Writer, Any], Any]"
Rows: TypeAlias = "Callable[[Writer, Sequence[Any]], Any]"

ENCODERS: dict[type, Encode] = {}
RESOLVERS: list[Callable[[type], Encode | None]] = []  # asked in order for the rule of a type that is not in ENCODERS
ROWS: dict[type, Rows] = {}  # for lists of one type; a rule returns None for a list that it does not take


def refusing(hint: str) -> Encode:
    """The rule of a type that does not travel."""

    def refuse(writer: Writer, value: Any) -> Any:
        raise Refused(value, hint)

    return refuse


_refuse = refusing("")


def rule_of(kind: type) -> Encode:
    """The rule for a type; one that refuses its values where there is none."""
    found = ENCODERS.get(kind) or next(filter(None, (resolve(kind) for resolve in RESOLVERS)), None)
    if found is None:  # not noted: the module that has the rule's types may still be on its way in
        return _refuse
    ENCODERS[kind] = found
    return found


class Writer:
    """Turns one value into what msgspec can encode, and collects its buffers.

    At first it scans each container, packs it as it is where msgpack holds that, and writes lists of like items as
    columns. After a refusal it starts over, looks at every value, and so finds what is refused and where it lies.
    """

    __slots__ = ("_columned", "_depth", "_listed", "buffers", "native")

    def __init__(self) -> None:
        self.buffers: list[memoryview] = []
        self.native = NATIVE
        self._listed: dict[int, tuple[int, int, Any]] = {}  # by identity: number, code, the object
        self._depth = 0
        self._columned = 0  # rows written as columns

    def start_over(self) -> None:
        """Makes the writer look at every value by itself, int and str as well."""
        self.buffers, self.native, self._depth = [], CAREFUL, 0
        self._columned = 0
        self._listed.clear()

    @property
    def careful(self) -> bool:
        """Every value is looked at by itself."""
        return self.native is CAREFUL

    def plain(self, value: Any) -> Any:
        """Returns `value` in a form that msgspec encodes.

        Raises:
            Refused: It, or something in it, is not serializable.
        """
        kind = type(value)
        if kind in self.native:
            return value
        depth = self._depth
        if depth >= MAX_DEPTH:
            raise Refused(value, TOO_DEEP)
        self._depth = depth + 1
        try:
            return (ENCODERS.get(kind) or rule_of(kind))(self, value)
        except Refused as refused:
            refused.rise(value)
            raise
        finally:
            self._depth = depth

    def column(self, values: Sequence[Any]) -> Any:
        """`values` in a form that arrives as a list of them."""
        found = self.found(values)
        if found == ALL_NATIVE:
            return values
        if len(values) < FEW or self.careful or ((kind := type(values[0])) in NATIVE and kind not in ROWS):
            return self.each(values)
        if found == NATIVE_TUPLES:
            return self.extension(TUPLES, values)
        rows = self._rows(kind, values)
        return self.each(values) if rows is None else rows

    def found(self, value: Any) -> int:
        """What `scan` finds in a value that is written now."""
        return scan(value, MAX_DEPTH + 1 - self._depth, MOST) if self.native is NATIVE else FOREIGN

    def each(self, values: Sequence[Any]) -> Sequence[Any]:
        """Every one of them in a form that msgspec encodes."""
        native = self.native
        if native.issuperset(map(type, values)):
            return values
        plain = self.plain
        return [value if type(value) in native else plain(value) for value in values]

    def _rows(self, kind: type, values: Sequence[Any]) -> Any:
        rule_of(kind)  # adds the one for rows as well
        rule = ROWS.get(kind)
        if (
            not self.takes_rows(len(values))
            or rule is None
            or self._depth >= MAX_DEPTH
            or [*map(type, values)].count(kind) != len(values)
        ):
            return None
        self._depth += 1
        try:
            return rule(self, values)
        finally:
            self._depth -= 1

    def takes_rows(self, count: int) -> bool:
        """Whether so many more objects may be written as columns; the reader takes no more."""
        self._columned += count
        return self._columned <= MOST_ROWS

    def extension(self, code: int, payload: Any) -> Ext:
        """Wraps `payload`, which must be plain already."""
        return Ext(code, pack_plain(payload))

    def listed(self, code: int, value: Any) -> Ext:
        """Puts an object into the list before the value. Returns what stands for it: its number there."""
        known = self._listed.setdefault(id(value), (len(self._listed), code, value))
        return Ext(LISTED, pack_plain(known[0]))

    def header(self, value: Any) -> bytes:
        """`value` as bytes, behind the list of what it refers to."""
        body = pack_plain(self.plain(value))
        if not self._listed:
            return body
        _, (code, *_), objects = zip(*self._listed.values(), strict=True)
        return pack_plain(self.extension(TABLE, [code, LISTED_TYPES[code].pack(objects), body]))

    def buffer(self, memory: memoryview, inline: int) -> int | bytes:
        """Hands over flat `memory`. Returns what stands for it: a number, or the bytes when there are few."""
        if len(memory) <= inline:
            return memory.tobytes()
        self.buffers.append(memory)
        return len(self.buffers) - 1
