"""Lists whose items are alike, written as columns. What arrives is the same list.

A column is checked and packed at C speed, where a row by itself costs calls of Python functions and a message of its
own. The rule for tuples is here; dataclasses of one class have theirs beside the rule for one (`user_types`).
"""

from __future__ import annotations

from itertools import chain, islice
from typing import Any

from rolecall.errors import DecodeError
from rolecall.transport.codec.walk import DECODERS, ROWS, Reader, Writer

EVEN_TUPLES, UNEVEN_TUPLES = -60, -61


def columns(found: list[Any]) -> list[list[Any]]:
    """The columns that arrived, when they are such.

    Raises:
        DecodeError: There are none, one is no list, or one is longer than the others.
    """
    if set(map(type, found)) != {list} or len(set(map(len, found))) != 1:
        raise DecodeError("columns are not lists of one length")
    return found


def _tuples(writer: Writer, rows: list[Any]) -> Any:
    lengths = list(map(len, rows))
    if not lengths[0] or lengths.count(lengths[0]) != len(lengths):
        return writer.extension(UNEVEN_TUPLES, [lengths, writer.column(list(chain.from_iterable(rows)))])
    return writer.extension(EVEN_TUPLES, list(map(writer.column, zip(*rows, strict=True))))


def _decode_even(reader: Reader, data: memoryview) -> Any:
    return list(zip(*columns(reader.items(data)), strict=True))


def _decode_uneven(reader: Reader, data: memoryview) -> Any:
    lengths, items = reader.items(data, 2)
    if type(lengths) is not list or type(items) is not list or not {int}.issuperset(map(type, lengths)):
        raise DecodeError("lengths and items of tuples are not the lists that they must be")
    if min(lengths, default=0) < 0 or sum(lengths) != len(items):
        raise DecodeError("lengths of tuples do not fit their number of items", len(items))
    rest = iter(items)
    return [tuple(islice(rest, length)) for length in lengths]


ROWS[tuple] = _tuples
DECODERS[EVEN_TUPLES] = _decode_even
DECODERS[UNEVEN_TUPLES] = _decode_uneven
