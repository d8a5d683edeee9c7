"""Plain values arrive type for type, whichever form the encoder takes for them; refusals name the place in each."""

from __future__ import annotations

import datetime as dt
import enum
import math
from collections import Counter, OrderedDict, defaultdict
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import Struct
from msgspec.msgpack import Ext
from msgspec.msgpack import encode as packed

from rolecall.errors import DecodeError, EncodeError
from rolecall.transport import codec
from rolecall.transport.codec import decode, encode, reader, writer
from rolecall.transport.codec.plain import DICTS, EVEN_TUPLES, LISTS, UNEVEN_TUPLES
from rolecall.transport.codec.user_types import DATACLASSES

SETTINGS = settings(deadline=None, max_examples=100, database=None, suppress_health_check=list(HealthCheck))


class Small(enum.IntEnum):
    ONE = 1


class Name(enum.StrEnum):
    A = "a"


class Half(enum.Enum):
    HALF = 0.5


class Pair(NamedTuple):
    a: Any
    b: Any


@dataclass
class Row:
    a: Any
    b: Any = None


@dataclass(frozen=True, slots=True)
class Slotted:
    a: Any


class Untracked(Struct, gc=False, frozen=True):
    a: int = 1


@dataclass(slots=True)
class Nothing:
    """An instance of it refers to nothing at all."""


class Int(int):
    __slots__ = ()


class Float(float):
    __slots__ = ()


class Text(str):
    __slots__ = ()


class List(list[Any]):
    pass


class Dict(dict[Any, Any]):
    pass


class Tuple(tuple[Any, ...]):
    __slots__ = ()


def exact(a: Any, b: Any) -> bool:
    """Equal, type for type and in order, a NaN to a NaN and -0.0 not to 0.0."""
    if type(a) is not type(b):
        return False
    if type(a) is float:
        return math.copysign(1, a) == math.copysign(1, b) and (a == b or (math.isnan(a) and math.isnan(b)))
    if isinstance(a, dict):
        return len(a) == len(b) and all(map(exact, a, b)) and all(map(exact, a.values(), b.values()))
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(exact, a, b))
    if isinstance(a, Row | Slotted):
        return exact([getattr(a, n, ...) for n in ("a", "b")], [getattr(b, n, ...) for n in ("a", "b")])
    return bool(a == b)


def sent(value: Any) -> Any:
    header, buffers = encode(value)
    return decode(header, [memoryview(bytearray(b)) for b in buffers])


ODD = [Small.ONE, Name.A, Half.HALF, np.float64(1.5), np.str_("a"), np.int64(1), b"b", bytearray(b"b"), Decimal(1)]
ODD += [dt.date(2026, 1, 1), dt.timedelta(1), (), frozenset(), Untracked(), Nothing(), 2**70, -(2**70), "\ud800"]
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-300, 300), st.integers(), st.floats(), st.text(st.characters(), max_size=3)
)
LEAVES = st.one_of(SCALARS, SCALARS, st.sampled_from(ODD))
KEYS = st.one_of(
    st.text(max_size=2), st.integers(0, 3), st.booleans(), st.none(), st.floats(), st.sampled_from([Name.A, Small.ONE])
)


def _nested(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    alike = st.tuples(inner, SCALARS)
    return st.one_of(
        st.lists(inner, max_size=20),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(KEYS, inner, max_size=4),
        st.lists(alike, min_size=4, max_size=20),
        st.lists(alike, min_size=4, max_size=20).map(lambda rows: [dict(zip("ab", row, strict=True)) for row in rows]),
        st.lists(alike, min_size=4, max_size=20).map(lambda rows: [Row(*row) for row in rows]),
        st.lists(inner, min_size=4, max_size=20).map(lambda rows: [Slotted(row) for row in rows]),
        st.lists(st.lists(inner, max_size=3), min_size=4, max_size=6),
        st.lists(st.lists(inner, max_size=3).map(tuple), min_size=4, max_size=6),
        alike.map(lambda row: Pair(*row)),
    )


@SETTINGS
@given(st.recursive(LEAVES, _nested, max_leaves=60))
def test_values_arrive_type_for_type(value: Any) -> None:
    """Any plain value decodes to a value whose types are equal at every level."""
    assert exact(sent(value), value)


@SETTINGS
@given(st.sampled_from([1, 0.5, "a", True, None]), st.sampled_from(ODD), st.integers(0, 39), st.integers(0, 3))
def test_an_odd_one_among_many_alike_arrives_as_it_was(usual: Any, odd: Any, at: int, form: int) -> None:
    """One element of another type in a uniform sequence keeps its type, wherever it stands."""
    items: list[Any] = [usual] * 40
    items[at] = odd
    value = [items, [items] * 5, [(1, item) for item in items], [{"a": item, "b": [item]} for item in items]][form]
    assert exact(sent(value), value)


@pytest.mark.parametrize("odd", ODD, ids=lambda odd: type(odd).__name__)
@pytest.mark.parametrize("usual", [1, 0.5, "a", True], ids=str)
def test_an_odd_one_inside_is_told_from_the_usual_ones(usual: Any, odd: Any) -> None:
    """One element that equals its neighbours but has another type keeps that type."""
    items = [usual] * 40
    items[7] = odd
    for value in (items, [items] * 3, {"a": items}, [{"a": item} for item in items], [(item,) for item in items]):
        assert exact(sent(value), value)


@SETTINGS
@given(
    st.sampled_from([1, 0.5, "a", True, None]),
    st.sampled_from([*ODD, [1], {1: 2}, (1,)]),
    st.integers(0, 39),
    st.integers(0, 5),
)
def test_an_odd_one_in_rows_arrives_as_it_was(usual: Any, odd: Any, at: int, form: int) -> None:
    """One odd element or key among rows of tuples, of unequal length too, or among int-keyed dicts keeps its type."""
    rows: list[Any] = [(usual, 1, "x")] * 40
    ragged: list[Any] = [(usual,) * (1 + n % 3) for n in range(40)]
    keyed: list[Any] = [dict.fromkeys(range(20), usual) for _ in range(40)]
    rows[at], ragged[at], keyed[at][at % 20] = (1, odd, "x"), (odd, usual), odd
    key = odd if type(odd).__hash__ is not None else (1,)
    odd_keys = [{**dict.fromkeys(range(20), usual), key: 1} for _ in range(3)]
    value = [rows, ragged, keyed, [(rows[at], [usual])] * 20, odd_keys, dict.fromkeys(range(100), rows[at])][form]
    assert exact(sent(value), value)


REFUSED = [Int(1), Float(1), Text("a"), List([1]), Dict(a=1), Tuple((1,)), Counter("a"), object(), {1}.__iter__()]


@pytest.mark.parametrize("odd", REFUSED, ids=lambda odd: type(odd).__name__)
@pytest.mark.parametrize("usual", [1, 0.5, "a", None], ids=str)
@pytest.mark.parametrize("count", [3, 40])
def test_what_is_refused_is_refused_with_its_place(odd: Any, usual: Any, count: int) -> None:
    """The place in the error is exact, however uniform the values around it are."""
    items = [usual] * count
    items[2] = odd
    for value, place in (
        (items, r"\[2\]"),
        ([[1], items], r"\[1\]\[2\]"),
        ([{"a": item} for item in items], r"\[2\]\['a'\]"),
        ([(1, item) for item in items], r"\[2\]\[1\]"),
        ([Row(item) for item in items], r"\[2\]\.a"),
        ([Slotted([item]) for item in items], r"\[2\]\.a\[0\]"),
        ({"k": {"x": (items, 1)}}, r"\['k'\]\['x'\]\[0\]\[2\]"),
    ):
        with pytest.raises(EncodeError, match=f"^args{place}: a value of type .*{type(odd).__name__}"):
            encode(value, "args")


@pytest.mark.parametrize("key", [Text("a"), np.str_("a"), Int(1), Name.A, Small.ONE, True, 1.0, (1,)], ids=repr)
@pytest.mark.parametrize("count", [1, 40])
def test_a_key_of_another_type_is_no_key_of_the_usual_type(key: Any, count: int) -> None:
    """A dict whose key equals the usual key but has another type keeps its key, or is refused."""
    usual = "a" if isinstance(key, str) else 1
    rows: list[Any] = [{usual: 1, "b": 2} for _ in range(count)] + [{key: 1, "b": 2}]
    if type(key) in (Text, Int):
        with pytest.raises(EncodeError):
            encode(rows)
    else:
        assert exact(sent(rows), rows)


def test_dicts_of_other_kinds_stay_what_they_are() -> None:
    """Subclasses of dict among plain dicts keep their type."""
    rows = [OrderedDict(a=1), defaultdict(list, a=[1]), {"a": 1}] * 20
    assert exact(sent(rows), rows)


def test_a_row_with_more_or_less_than_its_fields_keeps_that() -> None:
    """Instances of one dataclass that have gained or lost attributes arrive with exactly those they have."""
    rows = [Row(i) for i in range(10)]
    rows[3].__dict__["more"] = (1,)
    del rows[4].__dict__["b"]
    got = sent(rows)
    assert got[3].more == (1,) and not hasattr(got[5], "more") and got[4].b is None and len(got) == 10


@pytest.mark.parametrize("make", [lambda x: [x], lambda x: {"a": x}, lambda x: (x,), lambda x: [x] * 2])
def test_nesting_is_allowed_to_the_limit_and_no_further(make: Any) -> None:
    """Nesting within the limit arrives, nesting beyond it is refused."""
    value: Any = 1
    for _ in range(15):
        value = make(value)
    assert exact(sent(value), value)
    value = []
    for _ in range(80):
        value = [value, 1]
    with pytest.raises(EncodeError, match="nested deeper than"):
        encode(value)


def test_a_list_that_contains_itself_many_times_is_refused_soon() -> None:
    """Cycles are refused with a reason, also where each level multiplies the ways around."""
    loop: list[Any] = []
    loop += [loop] * 50
    with pytest.raises(EncodeError, match="contains itself"):
        encode({"x": loop})
    rows: list[Any] = [(1, 2)] * 10
    rows[5] = (1, rows)
    with pytest.raises(EncodeError, match="contains itself"):
        encode(rows)


ROW = "tests.transport.codec.test_exact:Row"


@pytest.mark.parametrize(
    "code, content",
    [
        (reader.TUPLES, [1]),
        (reader.TUPLES, 1),
        (reader.TUPLES, {"a": [1]}),
        (EVEN_TUPLES, []),
        (EVEN_TUPLES, [1]),
        (EVEN_TUPLES, [[1], [1, 2]]),
        (EVEN_TUPLES, [[1], "a"]),
        (UNEVEN_TUPLES, [[1, 2], [1]]),
        (UNEVEN_TUPLES, [[-1, 2], [1]]),
        (UNEVEN_TUPLES, [[True], [1]]),
        (UNEVEN_TUPLES, [1, [1]]),
        (LISTS, [[1 << 40], [1]]),
        (LISTS, ["a", ["a"]]),
        (DICTS, []),
        (DICTS, [["a", "b"], [1]]),
        (DICTS, [[1], [1]]),
        (DICTS, [["a"], 5]),
        (DATACLASSES, [ROW]),
        (DATACLASSES, [ROW, ["a"], [1], [2]]),
        (DATACLASSES, [ROW, ["a", "a"], [1], [2]]),
        (DATACLASSES, [ROW, ["c"], [1]]),
        (DATACLASSES, ["os:system", ["a"], [1]]),
        (reader.WHOLE, 0),
        (reader.WHOLE, "a"),
        (reader.LISTED, 0),
        (reader.TABLE, [[1], 1]),
    ],
)
def test_broken_columns_are_refused(code: int, content: Any) -> None:
    """A forged column of rows whose parts do not fit together is refused."""
    with pytest.raises(DecodeError):
        decode(packed(Ext(code, packed(content))))


def test_more_rows_than_one_value_may_have_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The receiver bounds how many rows one header may expand to; the sender avoids the form where it would not fit."""
    for side in (reader, writer):
        monkeypatch.setattr(side, "MOST_ROWS", 100)
    header = packed(Ext(DICTS, packed([["a"], [1] * 101])))
    with pytest.raises(DecodeError, match="too many rows"):
        decode(header)
    value = [(i,) for i in range(300)]
    assert sent(value) == value, "the sender writes them one by one"


TEXT = "a text of a prompt, " * 400


@pytest.mark.parametrize(
    "value",
    [
        TEXT,
        {"\ud800" * 5000: TEXT},
        [TEXT[: 10 * i] for i in range(100)],
        [f"{i}".encode() * 20 for i in range(100)],
        {i: f"{i} \ud800" * 20 for i in range(100)},
        [{"prompt": f"{i}" * 50, "raw": f"{i}".encode(), "n": [i]} for i in range(100)],
        [Row(f"{i}" * 50, i) for i in range(100)],
        [("b" * 50, i) for i in range(100)],
        list(range(1000)),
    ],
    ids=str,
)
def test_plain_values_have_no_limit(value: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where they are too long for a header they lie beside it, as arrays do."""
    monkeypatch.setattr(codec, "LONGEST", 500)
    assert len(encode(value).header) <= 500
    assert exact(sent(value), value)


def test_a_whole_value_lies_in_a_buffer_once() -> None:
    """A buffer that names itself, or is named many times, is refused: each level could multiply the value."""
    whole = packed(Ext(reader.WHOLE, packed(0)))
    with pytest.raises(DecodeError, match="a whole value"):
        decode(whole, [memoryview(bytearray(whole))])
    with pytest.raises(DecodeError, match="a whole value"):
        decode(packed([Ext(reader.WHOLE, packed(0))] * 2), [memoryview(bytearray(packed(1)))])
