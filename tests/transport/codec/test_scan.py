"""What `scan` finds in a value: the compiled function gives the answers of one in Python."""

from __future__ import annotations

import datetime as dt
import enum
import importlib
import math
import shutil
import sysconfig
import time
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import UNSET, Raw, Struct

from rolecall.transport.codec.native import ALL_NATIVE, FOREIGN, NATIVE_TUPLES
from rolecall.transport.codec.native import NATIVE as PLAIN
from rolecall.transport.codec.native import scan as chosen

Scan: TypeAlias = Callable[[object, int, int], int]


def _compiled() -> Scan | None:
    try:
        found: Scan = importlib.import_module("rolecall.transport.codec._scan").scan
    except ImportError:
        return None
    return found


COMPILED = _compiled()
ROOM, MOST = 64, 1000


def scan_in_python(value: object, room: int, most: int, /) -> int:
    """See `native.scan`."""
    left = most

    def native(items: Collection[Any], room: int) -> bool:
        nonlocal left
        left -= len(items)
        if room < 0 or left < 0:
            return False
        return PLAIN.issuperset(map(type, items)) or all(native_item(item, room) for item in items)

    def native_item(item: Any, room: int) -> bool:
        kind = type(item)
        if kind is dict:
            return PLAIN.issuperset(map(type, item)) and native(item.values(), room - 1)
        return kind in PLAIN or (kind is list and native(item, room - 1))

    if type(value) not in (list, tuple):
        return ALL_NATIVE if native_item(value, room) else FOREIGN
    rows: Sequence[Any] = value  # type: ignore[assignment]
    if not rows or type(rows[0]) is not tuple:
        return ALL_NATIVE if native(rows, room - 1) else FOREIGN
    left -= len(rows)
    if left < 0 or not all(type(row) is tuple and native(row, room - 2) for row in rows):
        return FOREIGN
    return NATIVE_TUPLES


class Small(enum.IntEnum):
    ONE = 1


class Name(enum.StrEnum):
    A = "a"


class Half(enum.Enum):
    HALF = 0.5


class Colour(enum.Flag):
    RED = 1


class Pair(NamedTuple):
    a: Any
    b: Any


@dataclass
class Row:
    a: Any = 1


class Part(Struct):
    a: int = 1


class Int(int):
    pass


class Float(float):
    pass


class Text(str):
    pass


class List(list[Any]):
    pass


class Dict(dict[Any, Any]):
    pass


class Tuple(tuple[Any, ...]):
    __slots__ = ()


NATIVE = [None, True, False, 0, 1, -1, 2**31, 2**64, -(2**70), 0.0, -0.0, 0.5, math.nan, math.inf, "", "a", "é\ud800"]
HASHED = [Small.ONE, Name.A, Half.HALF, Colour.RED, b"", b"a", 1j, ..., Int(1), Float(1), Text("a"), Decimal(1), object]
HASHED += [np.float64(1.5), np.int64(1), np.str_("a"), np.bool_(True), range(2), frozenset(), dt.date(2026, 1, 1), len]
OTHERS = [
    *HASHED,
    bytearray(b"a"),
    memoryview(b"a"),
    np.ones(2),
    set(),
    {1},
    deque([1]),
    Pair(1, 2),
    Row(),
    Part(),
    UNSET,
]
OTHERS += [
    List(),
    List([1]),
    Dict(),
    Dict(a=1),
    Tuple(),
    Tuple((1,)),
    OrderedDict(),
    defaultdict(list),
    Counter(),
    Raw(),
]
OTHERS += [Row, {}.keys(), iter([]), object()]


BOTH = [pytest.param(scan, id=scan.__module__.rpartition(".")[2]) for scan in (COMPILED, scan_in_python) if scan]


@pytest.fixture(params=BOTH)
def scan(request: pytest.FixtureRequest) -> Scan:
    found: Scan = request.param
    return found


@pytest.mark.parametrize("scalar", NATIVE, ids=repr)
def test_values_of_msgpack_are_native(scan: Scan, scalar: Any) -> None:
    """Exact scalars are native alone, in lists and dicts, and as keys, whatever their value is."""
    for value in (scalar, [scalar], {scalar: scalar}, [[scalar], {"a": [scalar]}], {"a": {1: scalar}}, (scalar,)):
        assert scan(value, ROOM, MOST) == ALL_NATIVE
    for rows in ([(scalar,)], ((scalar,), ()), [(), ([scalar], {scalar: 1})]):
        assert scan(rows, ROOM, MOST) == NATIVE_TUPLES


@pytest.mark.parametrize("other", OTHERS, ids=lambda other: f"{type(other).__name__}")
@pytest.mark.parametrize("usual", [1, 0.5, "a", None, [1], {1: 2}], ids=str)
def test_anything_else_is_foreign_wherever_it_lies(scan: Scan, other: Any, usual: Any) -> None:
    """One value of another type is found among many, at any place and depth."""
    items = [usual] * 7
    for value in (
        other,
        [other],
        [*items, other],
        [other, *items],
        (*items, other),
        {"a": usual, "b": other},
        [{"a": items}, {"a": [*items, {1: other}]}],
        [(usual,), (usual, other)],
        [(usual,), other],
        [(usual,), ([other],)],
    ):
        assert scan(value, ROOM, MOST) == FOREIGN


@pytest.mark.parametrize("key", [*HASHED, (), (1,)], ids=repr)
def test_keys_of_another_type_are_foreign(scan: Scan, key: Any) -> None:
    """A key of another type is found, though it may equal one that is native."""
    for value in ({key: 1}, {"b": 1, key: 1}, [{"a": {key: 1}}], [({key: 1},)]):
        assert scan(value, ROOM, MOST) == FOREIGN


@pytest.mark.parametrize(
    "value, found",
    [
        ([], ALL_NATIVE),
        ((), ALL_NATIVE),
        ({}, ALL_NATIVE),
        ([()], NATIVE_TUPLES),
        ([1, ()], FOREIGN),
        ([(), 1], FOREIGN),
        ([[()]], FOREIGN),
        ({"a": ()}, FOREIGN),
        ([((),)], FOREIGN),
        ([(1, [()])], FOREIGN),
    ],
)
def test_tuples_are_told_only_directly_in_a_list_or_tuple(scan: Scan, value: Any, found: int) -> None:
    """Tuples elsewhere than as all items of the outermost sequence are foreign; the outermost tuple is not."""
    assert scan(value, ROOM, MOST) == found


@pytest.mark.parametrize(
    "wrap, levels",
    [(lambda x: [x], 1), (lambda x: {"a": x}, 1), (lambda x: [1, {"a": x}], 2)],
    ids=["[]", "{}", "[{}]"],
)
@pytest.mark.parametrize("inmost", [1, [], {}], ids=str)
def test_depth_is_allowed_to_the_bound_and_no_further(scan: Scan, wrap: Any, levels: int, inmost: Any) -> None:
    """As many containers in one another as there is room for are native; one more is foreign."""
    value, room = inmost, 20 * levels + (inmost != 1)
    for _ in range(20):
        value = wrap(value)
    assert scan(value, room, MOST) == ALL_NATIVE
    assert scan(value, room - 1, MOST) == FOREIGN
    assert scan([(value,)], room + 2, MOST) == NATIVE_TUPLES
    assert scan([(value,)], room + 1, MOST) == FOREIGN


@pytest.mark.parametrize(
    "value, items", [([1] * 9, 9), ({1: [1, 2], 2: {3: 4}}, 5), ([[[]], []], 3), ([(1, 2)] * 3, 9)]
)
def test_items_are_allowed_to_the_bound_and_no_further(scan: Scan, value: Any, items: int) -> None:
    """As many items as may be are not foreign, counted each time they are met; one more is."""
    assert scan(value, ROOM, items) != FOREIGN
    assert scan(value, ROOM, items - 1) == FOREIGN


def test_what_contains_itself_is_foreign_and_that_is_found_soon(scan: Scan) -> None:
    """Neither a cycle nor lists that multiply on each level keep it busy."""
    begun = time.monotonic()
    loop: list[Any] = []
    loop += [loop] * 50
    keyed: dict[Any, Any] = {}
    keyed |= {1: keyed, 2: [keyed]}
    rows: list[Any] = [(1, 2)] * 10
    rows[5] = (1, [rows])
    wide: Any = [1] * 10
    for _ in range(50):
        wide = [wide] * 10
    for value in (loop, keyed, rows, wide):
        assert scan(value, ROOM, 1 << 16) == FOREIGN
    assert time.monotonic() - begun < 10


KEYS = st.one_of(st.text(max_size=2), st.integers(), st.sampled_from(NATIVE), st.sampled_from([*NATIVE, *HASHED]))
LEAVES = st.one_of(st.integers(), st.floats(), st.text(max_size=2), st.sampled_from(NATIVE))


def _nested(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(
        st.lists(inner, max_size=5),
        st.dictionaries(st.sampled_from(NATIVE), inner, max_size=4),
        st.dictionaries(KEYS, inner, max_size=4),
        st.lists(st.lists(inner, max_size=3).map(tuple), max_size=5),
        st.lists(inner, max_size=4).map(tuple),
    )


VALUES = st.one_of(
    st.recursive(LEAVES, _nested, max_leaves=40),
    st.recursive(LEAVES | st.sampled_from([*NATIVE, *OTHERS]), _nested, max_leaves=40),
)


@settings(deadline=None, max_examples=500, database=None, suppress_health_check=list(HealthCheck))
@given(VALUES, st.integers(0, 8), st.integers(0, 60))
def test_both_give_the_same_answer(value: Any, room: int, most: int) -> None:
    """The compiled function and the one in Python agree on any value, under any bounds."""
    for bounds in ((room, most), (room, MOST), (ROOM, most), (ROOM, MOST)) if COMPILED else ():
        assert chosen(value, *bounds) == scan_in_python(value, *bounds)


def test_it_is_compiled_where_there_is_a_compiler() -> None:
    """And the codec uses it then."""
    compiler = str(sysconfig.get_config_var("CC")).split()[0]
    can = shutil.which(compiler) and Path(sysconfig.get_path("include"), "Python.h").is_file()
    assert chosen is COMPILED or not can


@pytest.mark.parametrize("scan", [COMPILED] if COMPILED else [])
def test_the_compiled_one_takes_no_more_levels_than_its_stack_has(scan: Scan) -> None:
    """It refuses bounds that it could not keep."""
    with pytest.raises(ValueError, match="levels"):
        scan([], 1 << 20, 1)
    with pytest.raises(TypeError):
        scan([], "a", 1)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="scan takes"):
        scan([])  # type: ignore[call-arg]
