"""Walks nested values: dicts, lists, tuples, named tuples, sets, dataclasses and msgspec Structs.

Types are preserved, and containers without a changed leaf are returned as they are. It knows nothing of tensors.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import msgspec

from rolecall.transport.codec.native import is_native

MAX_DEPTH = 200  # deeper than any real batch; ends a value that contains itself

_PLAIN = frozenset({int, float, bool, str, bytes, type(None)})

Change = Callable[[Any], Any]


def leaves(value: Any) -> Iterator[Any]:
    """Every leaf of `value`, in order. Plain scalars in lists are passed over together."""
    found: list[Any] = []

    def note(leaf: Any) -> Any:
        found.append(leaf)
        return leaf

    map_leaves(note, value)
    return iter(found)


def map_leaves(change: Change, value: Any, *, enter: Change | None = None) -> Any:
    """`value` with every leaf replaced by `change(leaf)`.

    Args:
        change: Called with each leaf; numbers, strings, bytes and None are left out.
        enter: Called with each container before it is walked; what it returns is walked instead.

    Raises:
        ValueError: The value is nested deeper than 200 levels, or contains itself.
    """
    return value if is_native(value) else _Walk(change, enter).walk(value)


class _Walk:
    """One walk over a value, and how deep it is now. A function that calls itself would keep the leaves alive."""

    def __init__(self, change: Change, enter: Change | None) -> None:
        self._change, self._enter, self._depth = change, enter, 0

    def walk(self, value: Any) -> Any:
        kind: type = type(value)
        if kind in _PLAIN:
            return value
        rule = _rule_of(kind)
        if rule is None:
            return self._change(value)
        if self._depth > MAX_DEPTH:
            raise ValueError(f"a value nested deeper than {MAX_DEPTH} levels; does it contain itself?")
        self._depth += 1
        new = rule(self.walk, self._enter(value) if self._enter else value)
        self._depth -= 1
        return new


@lru_cache(1024)  # types may be made at run time
def _rule_of(kind: type) -> Callable[[Change, Any], Any] | None:
    """How a container of that type is walked; None for a leaf."""
    if issubclass(kind, dict):
        return _walk_dict
    if issubclass(kind, list | tuple | set | frozenset):
        return _walk_sequence
    if issubclass(kind, msgspec.Struct) or dataclasses.is_dataclass(kind):
        return _walk_record
    return None


def _walk_dict(inner: Change, value: dict[Any, Any]) -> Any:
    new = {key: inner(item) for key, item in value.items()}
    if all(new[key] is item for key, item in value.items()):
        return value
    out = copy.copy(value)  # keeps the order of an OrderedDict and the factory of a defaultdict
    out.update(new)
    return out


def _walk_sequence(inner: Change, value: Any) -> Any:
    if _PLAIN.issuperset(map(type, value)):  # a list of a million token ids costs one pass in C
        return value
    new = [inner(item) for item in value]
    if all(a is b for a, b in zip(new, value, strict=True)):
        return value
    return getattr(type(value), "_make", type(value))(new)


def _walk_record(inner: Change, value: Any) -> Any:
    is_struct = isinstance(value, msgspec.Struct)
    names = value.__struct_fields__ if is_struct else [f.name for f in dataclasses.fields(value)]
    old = {name: getattr(value, name) for name in names if hasattr(value, name)}
    changed = {name: new for name, item in old.items() if (new := inner(item)) is not item}
    if not changed:
        return value
    out = copy.copy(value)  # without running __init__ and __post_init__ a second time
    assign = msgspec.structs.force_setattr if is_struct else object.__setattr__
    for name, new in changed.items():
        assign(out, name, new)
    return out
