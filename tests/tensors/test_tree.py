"""The walk reaches every leaf and keeps every type."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict, defaultdict, namedtuple
from typing import Any

import msgspec
import pytest

from rolecall.tensors import tree


class Leaf:
    """Something that is no container."""


@dataclasses.dataclass(frozen=True)
class Frozen:
    x: Any
    made: list[int] = dataclasses.field(default_factory=list)

    def __post_init__(self) -> None:
        self.made.append(1)


class Record(msgspec.Struct, frozen=True):
    x: Any
    y: int = 0


Pair = namedtuple("Pair", "a b")


def _marked(value: Any) -> Any:
    return tree.map_leaves(lambda leaf: "new" if isinstance(leaf, Leaf) else leaf, value)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (Leaf(), "new"),
        ([1, Leaf()], [1, "new"]),
        ((Leaf(), None), ("new", None)),
        (Pair(Leaf(), 2), Pair("new", 2)),
        ({"a": {"b": [Leaf()]}}, {"a": {"b": ["new"]}}),
        (OrderedDict(z=Leaf(), a=1), OrderedDict(z="new", a=1)),
        (defaultdict(list, k=[Leaf()]), defaultdict(list, k=["new"])),
        ({Leaf()}, {"new"}),
        (frozenset([Leaf()]), frozenset(["new"])),
        (Record(Leaf(), 3), Record("new", 3)),
        ([Record([Leaf()])], [Record(["new"])]),
    ],
)
def test_types_are_kept(value: Any, expected: Any) -> None:
    """Replacing leaves keeps the type of every container."""
    got = _marked(value)
    assert got == expected and type(got) is type(expected)


def test_a_dataclass_is_not_made_a_second_time() -> None:
    """Its constructor, which may do anything, does not run again."""
    got = _marked(Frozen(Leaf()))
    assert got.x == "new" and got.made == [1]


@pytest.mark.parametrize("value", [[1, (2, {"a": [None]})], {"a": {1, 2}}, Record([1]), Frozen, Pair(1, 2), "text"])
def test_what_holds_no_changed_leaf_is_returned_as_it_is(value: Any) -> None:
    """A container without a replaced leaf is the same object as before."""
    assert _marked(value) is value


def test_the_original_is_not_changed() -> None:
    """Replacing leaves copies the containers that hold them."""
    leaf = Leaf()
    value = {"a": [leaf], "r": Record(leaf)}
    _marked(value)
    assert value == {"a": [leaf], "r": Record(leaf)}


def test_a_value_that_contains_itself_is_refused() -> None:
    """A cycle is an error, not an endless walk."""
    value: list[Any] = []
    value.append(value)
    with pytest.raises(ValueError, match="contain itself"):
        _marked(value)


def test_leaves_come_in_order() -> None:
    """Leaves are yielded in the order in which they stand."""
    a, b = Leaf(), Leaf()
    assert list(tree.leaves([{"x": (1, a)}, b])) == [a, b]
