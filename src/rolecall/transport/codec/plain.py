"""Rules for Python's own values: containers, numbers, bytes, times, paths. It imports nothing for the wire.

Large `bytes` lie beside the header in a buffer. `bytes` and `bytearray` are copied out of it when decoded, because that
is what those types are; a `memoryview` views the received memory.
"""

from __future__ import annotations

import datetime as dt
import uuid
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Sequence
from decimal import Decimal
from itertools import chain
from pathlib import Path, PosixPath, PurePath, PurePosixPath, PureWindowsPath, WindowsPath
from types import EllipsisType, NotImplementedType
from typing import Any
from zoneinfo import ZoneInfo

import msgspec

from rolecall.errors import DecodeError
from rolecall.transport.codec.native import ALL_NATIVE
from rolecall.transport.codec.places import Refused
from rolecall.transport.codec.reader import Reader
from rolecall.transport.codec.rules import DECODERS, ENCODERS
from rolecall.transport.codec.writer import Writer

TUPLE, SET, FROZENSET, PAIRS, ORDERED, DEFAULT, DEQUE = -2, -3, -4, -5, -6, -7, -8
BIG_INT, ODD_TEXT, BYTES, BYTEARRAY, MEMORYVIEW, COMPLEX, SLICE, RANGE, SINGLETON = (
    -9,
    -10,
    -11,
    -12,
    -13,
    -14,
    -15,
    -16,
    -17,
)
DATETIME, DATE, TIME, TIMEDELTA, TIMEZONE, ZONE, PATH, DECIMAL, UUID = -18, -19, -20, -21, -22, -23, -24, -25, -26

INLINE_BYTES = 4096  # more than this goes beside the header

_FACTORIES: dict[str, Callable[[], Any]] = {k.__name__: k for k in (list, dict, set, int, float, str, bool, tuple)}
_SINGLETONS: dict[str, Any] = {"Ellipsis": ..., "NotImplemented": NotImplemented, "UNSET": msgspec.UNSET}
_SINGLETON_NAMES = {type(value): name for name, value in _SINGLETONS.items()}
_PATHS: dict[str, type[PurePath]] = {k.__name__: k for k in (PurePosixPath, PureWindowsPath)}
_VIEW_FORMATS = frozenset("cbB?hHiIlLqQnNfd")


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


def _tuple(writer: Writer, value: tuple[Any, ...]) -> Any:
    return writer.extension(TUPLE, writer.column(value))


def _set(writer: Writer, value: set[Any]) -> Any:
    return writer.extension(SET, writer.column(list(value)))


def _frozenset(writer: Writer, value: frozenset[Any]) -> Any:
    return writer.extension(FROZENSET, writer.column(list(value)))


def _ordered(writer: Writer, value: OrderedDict[Any, Any]) -> Any:
    return writer.extension(ORDERED, _pairs(writer, value))


def _default(writer: Writer, value: defaultdict[Any, Any]) -> Any:
    factory = value.default_factory
    name = next((name for name, known in _FACTORIES.items() if known is factory), None)
    if factory is not None and name is None:
        raise Refused(value, "its default_factory is a function; send dict(value)")
    return writer.extension(DEFAULT, [name, *_pairs(writer, value)])


def _decode_default(reader: Reader, data: memoryview) -> Any:
    name, *pairs = reader.items(data)
    return defaultdict(_FACTORIES[name] if name is not None else None, _from_pairs(pairs))


def _deque(writer: Writer, value: deque[Any]) -> Any:
    return writer.extension(DEQUE, [value.maxlen, *map(writer.plain, value)])


def _decode_deque(reader: Reader, data: memoryview) -> Any:
    maxlen, *items = reader.items(data)
    return deque(items, maxlen)


ENCODERS[list] = Writer.column
ENCODERS[dict] = _dict
ENCODERS[tuple] = _tuple
ENCODERS[set] = _set
ENCODERS[frozenset] = _frozenset
ENCODERS[OrderedDict] = _ordered
ENCODERS[defaultdict] = _default
ENCODERS[deque] = _deque
DECODERS[TUPLE] = lambda reader, data: tuple(reader.items(data))
DECODERS[SET] = lambda reader, data: set(reader.items(data))
DECODERS[FROZENSET] = lambda reader, data: frozenset(reader.items(data))
DECODERS[PAIRS] = lambda reader, data: dict(_from_pairs(reader.items(data)))
DECODERS[ORDERED] = lambda reader, data: OrderedDict(_from_pairs(reader.items(data)))
DECODERS[DEFAULT] = _decode_default
DECODERS[DEQUE] = _decode_deque


# --- numbers and text that msgpack has no form for; met only when the writer is careful ---


def _int(writer: Writer, value: int) -> Any:
    if -(1 << 63) <= value < 1 << 64:
        return value
    return writer.extension(BIG_INT, value.to_bytes(value.bit_length() // 8 + 1, "big", signed=True))


def _str(writer: Writer, value: str) -> Any:
    try:
        value.encode()
    except UnicodeEncodeError:
        return writer.extension(ODD_TEXT, value.encode("utf-8", "surrogatepass"))
    return value


def _bounds(writer: Writer, value: slice | range) -> list[Any]:
    return [writer.plain(bound) for bound in (value.start, value.stop, value.step)]


def _content(reader: Reader, data: memoryview) -> bytes:
    found = reader.value(data)
    if type(found) is not bytes:
        raise DecodeError("an extension's content is not the bytes that it must be", type(found).__name__)
    return found


ENCODERS[int] = _int
ENCODERS[str] = _str
ENCODERS[complex] = lambda writer, value: writer.extension(COMPLEX, [value.real, value.imag])
ENCODERS[slice] = lambda writer, value: writer.extension(
    SLICE, [writer.plain(x) for x in (value.start, value.stop, value.step)]
)
ENCODERS[range] = lambda writer, value: writer.extension(
    RANGE, [writer.plain(x) for x in (value.start, value.stop, value.step)]
)
DECODERS[BIG_INT] = lambda reader, data: int.from_bytes(_content(reader, data), "big", signed=True)
DECODERS[ODD_TEXT] = lambda reader, data: _content(reader, data).decode("utf-8", "surrogatepass")
DECODERS[COMPLEX] = lambda reader, data: complex(*reader.items(data, 2))
DECODERS[SLICE] = lambda reader, data: slice(*reader.items(data, 3))
DECODERS[RANGE] = lambda reader, data: range(*reader.items(data, 3))


# --- bytes ---


def _bytes(writer: Writer, value: bytes) -> Any:
    if len(value) <= INLINE_BYTES:
        return value
    return writer.extension(BYTES, writer.buffer(memoryview(value), INLINE_BYTES))


def _bytearray(writer: Writer, value: bytearray) -> Any:
    return writer.extension(BYTEARRAY, writer.buffer(memoryview(value), INLINE_BYTES))


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
ENCODERS[bytearray] = _bytearray
ENCODERS[memoryview] = _memoryview
DECODERS[BYTES] = lambda reader, data: bytes(reader.buffer(reader.value(data)))
DECODERS[BYTEARRAY] = lambda reader, data: bytearray(reader.buffer(reader.value(data)))
DECODERS[MEMORYVIEW] = _decode_memoryview


# --- names for things that exist once ---


def _singleton(writer: Writer, value: Any) -> Any:
    return writer.extension(SINGLETON, _SINGLETON_NAMES[type(value)])


for _kind in (EllipsisType, NotImplementedType, type(msgspec.UNSET)):
    ENCODERS[_kind] = _singleton
DECODERS[SINGLETON] = lambda reader, data: _SINGLETONS[reader.text(data)]


# --- times ---


def _zone(writer: Writer, owner: Any, zone: dt.tzinfo | None) -> Any:
    if zone is None or type(zone) in (dt.timezone, ZoneInfo):
        return writer.plain(zone)
    raise Refused(owner, f"its tzinfo is a {type(zone).__name__}; use zoneinfo.ZoneInfo or datetime.timezone")


def _datetime(writer: Writer, value: dt.datetime) -> Any:
    day = [value.year, value.month, value.day, value.hour, value.minute, value.second, value.microsecond]
    return writer.extension(DATETIME, [*day, value.fold, _zone(writer, value, value.tzinfo)])


def _time(writer: Writer, value: dt.time) -> Any:
    parts = [value.hour, value.minute, value.second, value.microsecond]
    return writer.extension(TIME, [*parts, value.fold, _zone(writer, value, value.tzinfo)])


def _timedelta(writer: Writer, value: dt.timedelta) -> Any:
    return writer.extension(TIMEDELTA, [value.days, value.seconds, value.microseconds])


def _timezone(writer: Writer, value: dt.timezone) -> Any:
    offset, *name = value.__getinitargs__()  # type: ignore[attr-defined]
    return writer.extension(TIMEZONE, [offset.days, offset.seconds, offset.microseconds, *map(writer.plain, name)])


def _zoneinfo(writer: Writer, value: ZoneInfo) -> Any:
    if value.key is None:
        raise Refused(value, "it was made from a file and has no key")
    return writer.extension(ZONE, value.key)


def _decode_datetime(reader: Reader, data: memoryview) -> Any:
    *clock, fold, zone = reader.items(data, 9)
    return dt.datetime(*clock).replace(tzinfo=zone, fold=fold)


def _decode_time(reader: Reader, data: memoryview) -> Any:
    *clock, fold, zone = reader.items(data, 6)
    return dt.time(*clock).replace(tzinfo=zone, fold=fold)


def _decode_timezone(reader: Reader, data: memoryview) -> Any:
    days, seconds, micros, *name = reader.items(data)
    offset = dt.timedelta(days, seconds, micros)
    return dt.timezone(offset, *name) if name else dt.UTC if not offset else dt.timezone(offset)


ENCODERS[dt.datetime] = _datetime
ENCODERS[dt.time] = _time
ENCODERS[dt.timezone] = _timezone
ENCODERS[ZoneInfo] = _zoneinfo
ENCODERS[dt.date] = lambda writer, value: writer.extension(DATE, value.toordinal())
ENCODERS[dt.timedelta] = lambda writer, value: writer.extension(
    TIMEDELTA, [value.days, value.seconds, value.microseconds]
)
DECODERS[DATETIME] = _decode_datetime
DECODERS[TIME] = _decode_time
DECODERS[TIMEZONE] = _decode_timezone
DECODERS[ZONE] = lambda reader, data: ZoneInfo(reader.text(data))
DECODERS[DATE] = lambda reader, data: dt.date.fromordinal(reader.value(data))
DECODERS[TIMEDELTA] = lambda reader, data: dt.timedelta(*reader.items(data, 3))


# --- paths and the rest ---


def _path(writer: Writer, value: PurePath) -> Any:
    name = type(value).__name__ if type(value).__name__ in _PATHS else "Path"
    return writer.extension(PATH, [name, writer.plain(str(value))])


def _decode_path(reader: Reader, data: memoryview) -> Any:
    name, text = reader.items(data, 2)
    return _PATHS.get(name, Path)(text)


for _path_kind in (PosixPath, WindowsPath, PurePosixPath, PureWindowsPath):
    ENCODERS[_path_kind] = _path
ENCODERS[Decimal] = lambda writer, value: writer.extension(DECIMAL, str(value))
ENCODERS[uuid.UUID] = lambda writer, value: writer.extension(UUID, value.bytes)
DECODERS[PATH] = _decode_path
DECODERS[DECIMAL] = lambda reader, data: Decimal(reader.text(data))
DECODERS[UUID] = lambda reader, data: uuid.UUID(bytes=_content(reader, data))
