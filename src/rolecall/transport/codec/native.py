"""Whether values are what msgpack holds as they are, decided for many values at a time, in C. Pure.

msgspec's encoder walks plain values at C speed, but it also takes what would arrive as something else: tuples and sets
as lists, dataclasses and subclasses of dict as dicts, enum members as their values. These checks, cheaper than
`set(map(type, items))`, leave nothing but exact None, bool, int, float, str, list and dict:

- Objects of Python classes and containers refer to others, which `gc.get_referents` shows; numbers and texts refer to
  none.
- Of what refers to nothing, only numbers add up to an int or a float, and `msgspec.convert` takes only texts for texts.
- The encoder itself refuses subclasses of int, float and str that are no enum members.
- All keys of a dict are exact texts if and only if its referents are as many as its values (CPython keeps such dicts
  apart); where they are twice as many, the keys are among them.
- Values that lie side by side repeat their types with the length of their containers, and are looked at in columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from functools import reduce
from gc import get_referents
from itertools import chain
from operator import iconcat
from types import NoneType
from typing import Any

import msgspec

from rolecall.transport.frames import MAX_DEPTH

NATIVE = frozenset({NoneType, bool, int, float, str})
NATIVE_CONTAINERS = NATIVE | {list, dict}
SEEN = 64  # items from whose types is told how they repeat
MANY = 16  # items from which on the checks in C are the cheaper ones
FREE = 1 << 12  # containers that are joined before their items are counted
MOST = 1 << 22  # items looked at in one go: a list that contains itself many times multiplies on each level

_FLOAT = b"\xcb"  # what msgpack writes before the 8 bytes of a float

encode = msgspec.msgpack.Encoder().encode


def all_scalars(items: Sequence[Any]) -> bool:
    """True when every item is exactly a None, bool, int, float or str, or one that the encoder refuses."""
    alike = _ALIKE.get(type(items[0])) if len(items) >= MANY else None
    if alike is not None and not get_referents(*items):
        with suppress(Exception):  # an item that cannot be added up may raise anything
            if alike(items):
                return True
    return NATIVE.issuperset(map(type, items))


def _are_numbers(items: Sequence[Any]) -> bool:
    return type(sum(items)) in (int, float)


def _are_texts(items: Sequence[Any]) -> bool:
    return msgspec.convert(items, list[str]) is not None


_ALIKE = {int: _are_numbers, float: _are_numbers, bool: _are_numbers, str: _are_texts}


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


def foreign_level(items: Sequence[Any], room: int, period: int = 1) -> int | None:
    """Looks for what msgpack does not hold as it is, level by level.

    Args:
        items: What lies side by side in a list or as the values of a dict.
        room: Levels of nesting that are allowed.
        period: After how many items their types are likely to repeat; only a hint.

    Returns:
        The level on which it was found, 0 for `items` themselves; None when there is none.
    """
    for level in range(room):
        if not items:
            return None
        lists: list[Any] = []
        dicts: list[Any] = []
        for column in _columns(items, period):
            if not _sorted_out(column, lists, dicts):
                return level
        inside = _joined(lists)
        found = values_of(dicts) if dicts else ([], 1)
        if inside is None or found is None:
            return level + 1
        items, period = ([*inside, *found[0]], 1) if inside else found
    return room


def _joined(lists: Sequence[list[Any]]) -> list[Any] | None:
    """The items of all lists; None when there are too many."""
    items: list[Any] = []
    for at in range(0, len(lists), FREE):
        items = reduce(iconcat, lists[at : at + FREE], items)
        if len(items) > MOST:
            return None
    return items


def items_of(tuples: Sequence[tuple[Any, ...]]) -> list[Any] | None:
    """The items of all tuples, in whatever order; None when there are too many."""
    items = get_referents(*tuples[:FREE])
    for at in range(FREE, len(tuples), FREE):
        items += get_referents(*tuples[at : at + FREE])
        if len(items) > MOST:
            return None
    return items


def _columns(items: Sequence[Any], period: int) -> Sequence[Sequence[Any]]:
    """The items in parts of one type each, as far as the first of them show how."""
    kinds = [*map(type, items[: min(period, SEEN)])]
    for step in (1, 2, period):
        if step * MANY <= len(items) and kinds == (kinds[:step] * len(kinds))[: len(kinds)]:
            return [items[at::step] for at in range(step)] if step > 1 else (items,)
    return (items,)


def _sorted_out(items: Sequence[Any], lists: list[Any], dicts: list[Any]) -> bool:
    """Adds the lists and dicts among the items to these; False when one is neither such nor a scalar."""
    if type(items[0]) in NATIVE and all_scalars(items):
        return True
    kinds = set(map(type, items))
    if not kinds <= NATIVE_CONTAINERS:
        return False
    for kind, found in ((list, lists), (dict, dicts)):
        if kind in kinds:
            found += items if len(kinds) == 1 else [item for item in items if type(item) is kind]
    return True


def values_of(dicts: Sequence[Any]) -> tuple[Sequence[Any], int] | None:
    """The values of dicts, perhaps with their keys among them, and after how many of these their types may repeat.

    None for keys that are not native, or too many items.
    """
    count = sum(map(len, dicts))
    if count > MOST:
        return None
    values = get_referents(*dicts)
    if len(values) in (count, 2 * count):
        return values, len(dicts[0]) * len(values) // count if count else 1
    if not NATIVE.issuperset(map(type, chain.from_iterable(dicts))):
        return None
    return [*chain.from_iterable(map(dict.values, dicts))], 1
