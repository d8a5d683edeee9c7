"""Lists whose items are alike, written as columns. What arrives is the same list.

A column is checked and packed at C speed, where a row by itself costs calls of Python functions and a message of its
own. Lists, dicts and tuples come here only when msgpack does not hold what is in them. Dataclasses of one class have
their rule beside the rule for one (`user_types`).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, islice
from typing import Any

from rolecall.errors import DecodeError
from rolecall.transport.codec.reader import DECODERS, Reader
from rolecall.transport.codec.writer import ROWS, Writer

EVEN_TUPLES, UNEVEN_TUPLES, LISTS, DICTS = -60, -61, -62, -63

_TEXT = frozenset({str})
MOST_ITEMS = 1 << 23  # of all rows of one list together: one that contains itself many times multiplies on each level


def _few(rows: Sequence[Any]) -> bool:
    return sum(map(len, rows)) <= MOST_ITEMS


def _flat(writer: Writer, rows: Sequence[Any]) -> list[Any]:
    """The lengths of rows, and the items of all of them one after another."""
    return [[*map(len, rows)], writer.column([*chain.from_iterable(rows)])]


def _unflattened(reader: Reader, data: memoryview) -> Any:
    """The same, back; as iterators over each row."""
    lengths, items = reader.items(data, 2)
    if type(lengths) is not list or type(items) is not list or not {int}.issuperset(map(type, lengths)):
        raise DecodeError("lengths and items of rows are not the lists that they must be")
    if min(lengths, default=0) < 0 or sum(lengths) != len(items):
        raise DecodeError("lengths of rows do not fit their number of items", len(items))
    reader.count(len(lengths))
    rest = iter(items)
    return (islice(rest, length) for length in lengths)


def _tuples(writer: Writer, rows: Sequence[Any]) -> Any:
    if not _few(rows):
        return None
    try:
        columns = list(zip(*rows, strict=True))
    except ValueError:  # of several lengths
        columns = []
    if not columns:
        return writer.extension(UNEVEN_TUPLES, _flat(writer, rows))
    return writer.extension(EVEN_TUPLES, [*map(writer.column, columns)])


def _lists(writer: Writer, rows: Sequence[Any]) -> Any:
    return writer.extension(LISTS, _flat(writer, rows)) if _few(rows) else None


def _dicts(writer: Writer, rows: Sequence[Any]) -> Any:
    """The rule for dicts with the same keys, all of them texts; it takes no others."""
    keys = list(rows[0])
    if not keys or set(map(len, rows)) != {len(keys)} or not _few(rows):
        return None
    if not _TEXT.issuperset(map(type, chain.from_iterable(rows))) or len(set(map(tuple, rows))) > 1:
        return None
    columns = zip(*map(dict.values, rows), strict=True)
    return writer.extension(DICTS, [keys, *map(writer.column, columns)])


def _decode_dicts(reader: Reader, data: memoryview) -> Any:
    keys, *columns = reader.items(data)
    if type(keys) is not list or not {str}.issuperset(map(type, keys)) or len(keys) != len(columns):
        raise DecodeError("keys of dicts do not fit their columns", len(columns))
    return [dict(zip(keys, row, strict=True)) for row in zip(*reader.columns(columns), strict=True)]


ROWS[tuple] = _tuples
ROWS[list] = _lists
ROWS[dict] = _dicts
DECODERS[EVEN_TUPLES] = lambda reader, data: list(zip(*reader.columns(reader.items(data)), strict=True))
DECODERS[UNEVEN_TUPLES] = lambda reader, data: list(map(tuple, _unflattened(reader, data)))
DECODERS[LISTS] = lambda reader, data: list(map(list, _unflattened(reader, data)))
DECODERS[DICTS] = _decode_dicts
