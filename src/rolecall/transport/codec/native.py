"""Whether a value is what msgpack holds as it is, so that one call of msgspec packs it. Pure.

msgspec also takes what would arrive as something else: tuples and sets as lists, dataclasses and subclasses of dict as
dicts, enum members as their values. So a value is looked through before: in C (`_scan.c`) where that was compiled when
the package was installed, else in Python.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from types import NoneType
from typing import Any

import msgspec

from rolecall.transport.frames import MAX_DEPTH

NATIVE = frozenset({NoneType, bool, int, float, str})
ALL_NATIVE, NATIVE_TUPLES, FOREIGN = range(3)  # what `scan` finds
MOST = 1 << 26  # items of a value

encode = msgspec.msgpack.Encoder().encode


def scan_in_python(value: object, room: int, most: int, /) -> int:
    """Says what `value` holds.

    Args:
        value: Anything; of a tuple, what is in it.
        room: Levels of containers that may lie in one another, `value` among them.
        most: Items that may be in all of them together: a list that contains itself multiplies on each level.

    Returns:
        ALL_NATIVE: nothing but exact None, bool, int, float, str, list and dict. NATIVE_TUPLES: it is a list or a tuple
        of tuples of these. FOREIGN: something else, or it is too deep, or too much.
    """
    left = most

    def native(items: Collection[Any], room: int) -> bool:
        nonlocal left
        left -= len(items)
        if room < 0 or left < 0:
            return False
        return NATIVE.issuperset(map(type, items)) or all(native_item(item, room) for item in items)

    def native_item(item: Any, room: int) -> bool:
        kind = type(item)
        if kind is dict:
            return NATIVE.issuperset(map(type, item)) and native(item.values(), room - 1)
        return kind in NATIVE or (kind is list and native(item, room - 1))

    if type(value) not in (list, tuple):
        return ALL_NATIVE if native_item(value, room) else FOREIGN
    rows: Sequence[Any] = value  # type: ignore[assignment]
    if not rows or type(rows[0]) is not tuple:
        return ALL_NATIVE if native(rows, room - 1) else FOREIGN
    left -= len(rows)
    if left < 0 or not all(type(row) is tuple and native(row, room - 2) for row in rows):
        return FOREIGN
    return NATIVE_TUPLES


try:
    from rolecall.transport.codec._scan import scan as scan
except ImportError:  # it was installed where no C compiler is
    scan = scan_in_python


def is_native(value: Any) -> bool:
    """True when `value` holds only exact None, bool, int, float, str, list and dict."""
    return type(value) is not tuple and scan(value, MAX_DEPTH, MOST) == ALL_NATIVE
