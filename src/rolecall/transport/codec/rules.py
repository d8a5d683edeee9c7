"""The tables of rules that the writer and the reader follow: how each type becomes msgpack, and back.

A value becomes msgpack. What msgpack has no form for is an extension of ours: a code and, inside, msgpack again. Large
memory stays outside, in buffers that the inside names by number. Which type has which code and form is in the files
around this one (`plain`, `rows`, `user_types`, `exceptions`, `arrays`, `tensors`), which add their rules here. Codes
below 0 are ours, codes above 0 belong to `codec.extension`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from rolecall.transport.codec.places import Refused

if TYPE_CHECKING:
    from rolecall.transport.codec.reader import Reader
    from rolecall.transport.codec.writer import Writer

Encode: TypeAlias = "Callable[[Writer, Any], Any]"
Decode: TypeAlias = "Callable[[Reader, memoryview], Any]"
Listed: TypeAlias = "tuple[Callable[[Sequence[Any]], bytes], Callable[[bytes, Any], list[Any]]]"
Rows: TypeAlias = "Callable[[Writer, Sequence[Any]], Any]"

ENCODERS: dict[type, Encode] = {}
DECODERS: dict[int, Decode] = {}
RESOLVERS: list[Callable[[type], Encode | None]] = []  # asked in order for the rule of a type that is not in ENCODERS
ROWS: dict[type, Rows] = {}  # for lists of one type; a rule returns None for a list that it does not take
LISTED_TYPES: dict[int, Listed] = {}  # packs and reads what lies in a list before the value
TUPLES = -66  # a list of tuples that hold what msgpack holds, packed as lists are
TABLE, LISTED = -64, -65  # objects that lie in a list before the value, and what stands for one in the value
MOST_ROWS = 1 << 22  # of one value: a row that arrives in columns may take a byte and becomes an object


def rule_of(kind: type) -> Encode:
    """The rule for a type; one that refuses its values where there is none."""
    found = ENCODERS.get(kind)
    if found is not None:
        return found
    for resolve in RESOLVERS:
        found = resolve(kind)
        if found is not None:
            ENCODERS[kind] = found
            return found
    return _refuse


def _refuse(writer: Writer, value: Any) -> Any:
    raise Refused(value)
