"""Rules for Python's own values: containers, numbers, bytes, times, paths, and lists whose items are alike.

Large `bytes` lie beside the header in a buffer. `bytes` and `bytearray` are copied out of it when decoded, because that
is what those types are; a `memoryview` views the received memory.
"""

from __future__ import annotations

import datetime as dt
import uuid
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Sequence
from decimal import Decimal
from itertools import chain, islice
from operator import attrgetter
from pathlib import Path, PosixPath, PurePath, PurePosixPath, PureWindowsPath, WindowsPath
from typing import Any, TypeVar
from zoneinfo import ZoneInfo

import msgspec

from rolecall.errors import DecodeError
from rolecall.transport.codec.native import ALL_NATIVE
from rolecall.transport.codec.places import Refused
from rolecall.transport.codec.reader import DECODERS, Reader
from rolecall.transport.codec.writer import ENCODERS, ROWS, Writer

T = TypeVar("T")

TUPLE, SET, FROZENSET, PAIRS, ORDERED, DEFAULT, DEQUE = range(-2, -9, -1)
BIG_INT, TEXT, BYTES, BYTEARRAY, MEMORYVIEW, COMPLEX, SLICE, RANGE, SINGLETON = range(-9, -18, -1)
DATETIME, DATE, TIME, TIMEDELTA, TIMEZONE, ZONE, PATH, DECIMAL, UUID = range(-18, -27, -1)
EVEN_TUPLES, UNEVEN_TUPLES, LISTS, DICTS = -60, -61, -62, -63

INLINE_BYTES = 4096  # more than this goes beside the header
MOST_ITEMS = 1 << 23  # of all rows of one list together: one that contains itself many times multiplies on each level

_FACTORIES: dict[str, Callable[[], Any]] = {k.__name__: k for k in (list, dict, set, int, float, str, bool, tuple)}
_SINGLETONS: dict[str, Any] = {"Ellipsis": ..., "NotImplemented": NotImplemented, "UNSET": msgspec.UNSET}
_SINGLETON_NAMES = {type(value): name for name, value in _SINGLETONS.items()}
_PATHS: dict[str, type[PurePath]] = {k.__name__: k for k in (PurePosixPath, PureWindowsPath)}
_VIEW_FORMATS = frozenset("cbB?hHiIlLqQnNfd")
_CLOCK = ("hour", "minute", "second", "microsecond", "tzinfo", "fold")


def _of_parts(kind: type, code: int, make: Callable[..., Any], *names: str) -> None:
    """Adds a type whose objects are made again from these attributes."""
    parts = attrgetter(*names)
    ENCODERS[kind] = lambda writer, value: writer.extension(code, writer.each(parts(value)))
    DECODERS[code] = lambda reader, data: make(*reader.items(data, len(names)))


def _of_one(kind: type, code: int, make: Callable[[T], Any], as_plain: Callable[[Any], T], plain: type[T]) -> None:
    """Adds a type whose objects are made again from one plain value of the type `plain`."""
    ENCODERS[kind] = lambda writer, value: writer.extension(code, as_plain(value))
    DECODERS[code] = lambda reader, data: make(reader.content(data, plain))


# --- containers ---


def _dict(writer: Writer, value: dict[Any, Any]) -> Any:
    if writer.found(value) == ALL_NATIVE:
        return value
    native = writer.native
    if not native.issuperset(map(type, value)):
        return writer.extension(PAIRS, _pairs(writer, value))
    plain = writer.plain
    return {key: item if type(item) in native else plain(item) for key, item in value.items()}


def _pairs(writer: Writer, value: dict[Any, Any]) -> Sequence[Any]:
    """A dict as keys and values in turn, for keys that msgpack has no form for."""
    return writer.each([*chain.from_iterable(value.items())])


def _from_pairs(pairs: list[Any]) -> Iterable[tuple[Any, Any]]:
    if len(pairs) % 2:
        raise DecodeError("a dict with a key too many")
    return zip(pairs[::2], pairs[1::2], strict=True)


def _default(writer: Writer, value: defaultdict[Any, Any]) -> Any:
    factory = value.default_factory
    name = next((name for name, known in _FACTORIES.items() if known is factory), None)
    if factory is not None and name is None:
        raise Refused(value, "its default_factory is a function; send dict(value)")
    return writer.extension(DEFAULT, [name, *_pairs(writer, value)])


def _decode_default(reader: Reader, data: memoryview) -> Any:
    name, *pairs = reader.items(data)
    return defaultdict(_FACTORIES[name] if name is not None else None, _from_pairs(pairs))


def _decode_deque(reader: Reader, data: memoryview) -> Any:
    maxlen, *items = reader.items(data)
    return deque(items, maxlen)


ENCODERS[list] = Writer.column
ENCODERS[dict] = _dict
ENCODERS[tuple] = lambda writer, value: writer.extension(TUPLE, writer.column(value))
ENCODERS[set] = lambda writer, value: writer.extension(SET, writer.column(list(value)))
ENCODERS[frozenset] = lambda writer, value: writer.extension(FROZENSET, writer.column(list(value)))
ENCODERS[OrderedDict] = lambda writer, value: writer.extension(ORDERED, _pairs(writer, value))
ENCODERS[defaultdict] = _default
ENCODERS[deque] = lambda writer, value: writer.extension(DEQUE, [value.maxlen, *map(writer.plain, value)])
DECODERS[TUPLE] = lambda reader, data: tuple(reader.items(data))
DECODERS[SET] = lambda reader, data: set(reader.items(data))
DECODERS[FROZENSET] = lambda reader, data: frozenset(reader.items(data))
DECODERS[PAIRS] = lambda reader, data: dict(_from_pairs(reader.items(data)))
DECODERS[ORDERED] = lambda reader, data: OrderedDict(_from_pairs(reader.items(data)))
DECODERS[DEFAULT] = _decode_default
DECODERS[DEQUE] = _decode_deque


# --- numbers and text that msgpack has no form, or no room, for; met only when the writer is careful ---


def _int(writer: Writer, value: int) -> Any:
    if -(1 << 63) <= value < 1 << 64:
        return value
    return writer.extension(BIG_INT, value.to_bytes(value.bit_length() // 8 + 1, "big", signed=True))


def _str(writer: Writer, value: str) -> Any:
    try:
        value.encode()
    except UnicodeEncodeError:
        return writer.extension(TEXT, value.encode("utf-8", "surrogatepass"))
    return value


ENCODERS[int] = _int
ENCODERS[str] = _str
DECODERS[BIG_INT] = lambda reader, data: int.from_bytes(reader.content(data, bytes), "big", signed=True)
DECODERS[TEXT] = lambda reader, data: str(reader.content(data, bytes), "utf-8", "surrogatepass")
_of_parts(complex, COMPLEX, complex, "real", "imag")
_of_parts(slice, SLICE, slice, "start", "stop", "step")
_of_parts(range, RANGE, range, "start", "stop", "step")


# --- bytes ---


def _bytes(writer: Writer, value: bytes) -> Any:
    if len(value) <= INLINE_BYTES:
        return value
    return writer.extension(BYTES, writer.buffer(memoryview(value), INLINE_BYTES))


def _memoryview(writer: Writer, value: memoryview) -> Any:
    if value.format not in _VIEW_FORMATS:
        raise Refused(value, f"its items have the format {value.format!r}; send an array")
    flat = value.cast("B") if value.c_contiguous and value.nbytes else memoryview(value.tobytes())
    return writer.extension(MEMORYVIEW, [value.format, list(value.shape or ()), writer.buffer(flat, INLINE_BYTES)])


def _decode_memoryview(reader: Reader, data: memoryview) -> Any:
    layout, shape, ref = reader.items(data, 3)
    flat = reader.buffer(ref)
    if layout not in _VIEW_FORMATS or type(shape) is not list:
        raise DecodeError("a memoryview with a bad format or shape", layout)
    if 0 in shape or len(shape) == 1:
        return flat.cast(layout)
    return flat.cast(layout, shape)


ENCODERS[bytes] = _bytes
ENCODERS[bytearray] = lambda writer, value: writer.extension(BYTEARRAY, writer.buffer(memoryview(value), INLINE_BYTES))
ENCODERS[memoryview] = _memoryview
DECODERS[BYTES] = lambda reader, data: bytes(reader.buffer(reader.value(data)))
DECODERS[BYTEARRAY] = lambda reader, data: bytearray(reader.buffer(reader.value(data)))
DECODERS[MEMORYVIEW] = _decode_memoryview


# --- times ---


def _timezone(writer: Writer, value: dt.timezone) -> Any:
    offset, *name = value.__getinitargs__()  # type: ignore[attr-defined]
    return writer.extension(TIMEZONE, [offset.days, offset.seconds, offset.microseconds, *map(writer.plain, name)])


def _decode_timezone(reader: Reader, data: memoryview) -> Any:
    days, seconds, micros, *name = reader.items(data)
    offset = dt.timedelta(days, seconds, micros)
    return dt.timezone(offset, *name) if name or offset else dt.UTC


def _zoneinfo(writer: Writer, value: ZoneInfo) -> Any:
    if value.key is None:
        raise Refused(value, "it was made from a file and has no key")
    return writer.extension(ZONE, value.key)


ENCODERS[dt.timezone] = _timezone
ENCODERS[ZoneInfo] = _zoneinfo
DECODERS[TIMEZONE] = _decode_timezone
DECODERS[ZONE] = lambda reader, data: ZoneInfo(reader.content(data, str))
_of_parts(
    dt.datetime, DATETIME, lambda *parts: dt.datetime(*parts[:-1], fold=parts[-1]), "year", "month", "day", *_CLOCK
)
_of_parts(dt.time, TIME, lambda *parts: dt.time(*parts[:-1], fold=parts[-1]), *_CLOCK)
_of_parts(dt.timedelta, TIMEDELTA, dt.timedelta, "days", "seconds", "microseconds")
_of_one(dt.date, DATE, dt.date.fromordinal, dt.date.toordinal, int)


# --- paths and the rest ---


def _path(writer: Writer, value: PurePath) -> Any:
    name = type(value).__name__ if type(value).__name__ in _PATHS else "Path"
    return writer.extension(PATH, [name, writer.plain(str(value))])


def _decode_path(reader: Reader, data: memoryview) -> Any:
    name, text = reader.items(data, 2)
    return _PATHS.get(name, Path)(text)


for _path_kind in (PosixPath, WindowsPath, PurePosixPath, PureWindowsPath):
    ENCODERS[_path_kind] = _path
DECODERS[PATH] = _decode_path
_of_one(Decimal, DECIMAL, Decimal, str, str)
_of_one(uuid.UUID, UUID, lambda content: uuid.UUID(bytes=content), attrgetter("bytes"), bytes)
for _kind in _SINGLETON_NAMES:
    _of_one(_kind, SINGLETON, _SINGLETONS.__getitem__, lambda value: _SINGLETON_NAMES[type(value)], str)


# --- lists whose items are alike, written as columns ---
# A column is checked and packed at C speed, where a row by itself costs calls of Python functions and a message of its
# own. Lists, dicts and tuples come here only when msgpack does not hold what is in them. Dataclasses of one class have
# their rule beside the rule for one (`user_types`).


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
    if not {str}.issuperset(map(type, chain.from_iterable(rows))) or len(set(map(tuple, rows))) > 1:
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
