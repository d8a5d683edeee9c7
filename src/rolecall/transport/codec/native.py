"""Whether values are what msgpack holds as they are, decided for many values at a time, in C. Pure.

msgspec's encoder walks plain values at C speed, but it also takes what would arrive as something else: tuples and sets
as lists, dataclasses and subclasses of dict as dicts, enum members as their values. These checks, cheaper than
`set(map(type, items))`, leave nothing but exact None, bool, int, float, str, list and dict:

- Objects of Python classes and containers refer to others, which `gc.get_referents` shows; numbers and texts refer to
  none.
- `msgspec.convert` refuses every other type than the asked one and its subclasses.
- The encoder itself refuses subclasses of int, float and str that are no enum members.
- All keys of a dict are exact texts if and only if its referents are as many as its values (CPython keeps such dicts
  apart); where they are not, the keys are looked at one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from gc import get_referents
from itertools import chain
from types import NoneType
from typing import Any

import msgspec

from rolecall.transport.frames import MAX_DEPTH

NATIVE = frozenset({NoneType, bool, int, float, str})
NATIVE_CONTAINERS = NATIVE | {list, dict}
MANY = 16  # items from which on the checks in C are the cheaper ones
MOST = 1 << 22  # items looked at in one go

_LISTS: dict[type, Any] = {int: list[int], str: list[str]}
_FLOAT = b"\xcb"  # what msgpack writes before the 8 bytes of a float

encode = msgspec.msgpack.Encoder().encode


def all_scalars(items: Sequence[Any]) -> bool:
    """True when every item is exactly a None, bool, int, float or str, or one that the encoder refuses."""
    if len(items) < MANY:
        return NATIVE.issuperset(map(type, items))
    kind = type(items[0])
    if kind is float:
        return floats(items) is not None or NATIVE.issuperset(map(type, items))
    if kind in _LISTS:
        try:
            msgspec.convert(items, _LISTS[kind])
        except (msgspec.ValidationError, AttributeError):  # the latter for an object that is asked for its keys
            return NATIVE.issuperset(map(type, items))
        return not get_referents(*items)
    return NATIVE.issuperset(map(type, items))


def floats(items: Sequence[Any]) -> bytes | None:
    """A sequence of exact floats as msgpack; None when it holds anything else."""
    try:
        packed = encode(items)
    except Exception:  # whatever is wrong with an item is said when it is looked at by itself
        return None
    head = len(packed) - 9 * len(items)
    if head < 1 or packed[head::9].count(_FLOAT) != len(items) or get_referents(*items):
        return None
    return packed


def is_native(value: Any) -> bool:
    """True when `value` holds only exact None, bool, int, float, str, list and dict, or what the encoder refuses."""
    return foreign_level([value], MAX_DEPTH) is None


def foreign_level(items: Sequence[Any], room: int) -> int | None:
    """Looks for what msgpack does not hold as it is, level by level.

    Args:
        items: What lies side by side in a list or as the values of a dict.
        room: Levels of nesting that are allowed.

    Returns:
        The level on which it was found, 0 for `items` themselves; None when there is none.
    """
    for level in range(room):
        if type(items[0]) not in (list, dict) and all_scalars(items):
            return None
        kinds = set(map(type, items))
        if kinds <= NATIVE:
            return None
        if not kinds <= NATIVE_CONTAINERS:
            return level
        found = _inside(items, kinds)
        if found is None:
            return level + 1
        if not found:
            return None
        items = found
    return room


def _inside(items: Sequence[Any], kinds: set[type]) -> Sequence[Any] | None:
    """What the lists and dicts among the items hold; None for keys that are not native, or too many items."""
    lists: Sequence[Any] = ()
    dicts: Sequence[Any] = ()
    if list in kinds:
        lists = items if len(kinds) == 1 else [item for item in items if type(item) is list]
    if dict in kinds:
        dicts = items if len(kinds) == 1 else [item for item in items if type(item) is dict]
    count = sum(map(len, dicts))
    if count + sum(map(len, lists)) > MOST:
        return None
    inside = get_referents(*dicts) if dicts else []
    if len(inside) != count:
        if not NATIVE.issuperset(map(type, chain.from_iterable(dicts))):
            return None
        inside = list(chain.from_iterable(map(dict.values, dicts)))
    return inside + get_referents(*lists) if lists and inside else get_referents(*lists) if lists else inside
