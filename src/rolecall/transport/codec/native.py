"""Whether a value is what msgpack holds as it is, so that one call of msgspec packs it. Pure.

msgspec also takes what would arrive as something else: tuples and sets as lists, dataclasses and subclasses of dict as
dicts, enum members as their values. So a value is looked through before, in C (`_scan.c`). Where that was not compiled
when the package was installed, every value is written by its rule.
"""

from __future__ import annotations

from types import NoneType
from typing import Any

import msgspec

from rolecall.transport.frames import MAX_DEPTH

NATIVE = frozenset({NoneType, bool, int, float, str})
ALL_NATIVE, NATIVE_TUPLES, FOREIGN = range(3)  # what `scan` finds
MOST = 1 << 26  # items of a value

encode = msgspec.msgpack.Encoder().encode


try:
    from rolecall.transport.codec._scan import scan as scan
except ImportError:  # it was installed where no C compiler is; looked through in Python, a value would take longer

    def scan(value: object, room: int, most: int, /) -> int:
        """Says what `value` holds.

        Args:
            value: Anything; of a tuple, what is in it.
            room: Levels of containers that may lie in one another, `value` among them.
            most: Items that may be in all of them together: a list that contains itself multiplies on each level.

        Returns:
            ALL_NATIVE: nothing but exact None, bool, int, float, str, list and dict. NATIVE_TUPLES: it is a list or a
            tuple of tuples of these. FOREIGN: something else, or it is too deep, or too much, or nobody has looked.
        """
        return FOREIGN


def is_native(value: Any) -> bool:
    """True when `value` holds only exact None, bool, int, float, str, list and dict."""
    return type(value) is not tuple and scan(value, MAX_DEPTH, MOST) == ALL_NATIVE
