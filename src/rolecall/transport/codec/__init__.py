"""Values to bytes and back, into a closed set of types. It never pickles and never runs a callable that a peer names.

    header, buffers = encode({"method": "step", "args": (batch,)})
    value = decode(header, buffers)

The header is msgpack (see `rules`); large memory travels beside it in `buffers`, which view the sender's arrays and
tensors without a copy: they must not change until the frame is written. What is decoded views the received buffers, so
they belong to the value from then on.

What travels: None, bool, int of any size, float, str, bytes, bytearray, memoryview, complex, slice, range, Ellipsis;
list, tuple, named tuple, set, frozenset, dict with any keys, OrderedDict, defaultdict, deque; Enum, dataclass, msgspec
Struct, pydantic model; datetime, date, time, timedelta, timezone, ZoneInfo; Path, Decimal, UUID; exceptions; numpy
arrays, scalars and dtypes; torch tensors, dtypes, devices and sizes; and what another layer adds with `extension`.
Subclasses of these that are not named here do not travel, because they would arrive as something else.

Types by name are looked up under the rules of `type_names`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import tzinfo
from typing import Any, NamedTuple, NoReturn, TypeVar

import msgspec

from rolecall.errors import DecodeError, EncodeError, RolecallError
from rolecall.protocol.message import from_plain
from rolecall.transport.codec import arrays, plain, tensors, user_types  # noqa: F401  # they add their rules
from rolecall.transport.codec.exceptions import short_name
from rolecall.transport.codec.native import encode as pack_plain
from rolecall.transport.codec.native import is_native
from rolecall.transport.codec.places import Refused
from rolecall.transport.codec.reader import DECODERS, LISTED_TYPES, WHOLE, Listed, Reader
from rolecall.transport.codec.writer import ENCODERS, RESOLVERS, Writer
from rolecall.transport.frames import DEFAULT_LIMITS

T = TypeVar("T")
# By a rule; by msgspec, for a subclass of int, float or str; for a big int; for a lone surrogate; for too deep nesting.
_RARE = (Refused, TypeError, OverflowError, UnicodeEncodeError, RecursionError)
_CODES = range(1, 128)
_registered: dict[int, str] = {}
LONGEST = 1 << 20  # bytes of a header: a longer one lies in a buffer, where it is copied less often
_MOST_BUFFERS = DEFAULT_LIMITS.max_buffers
_SEEN = 200  # characters that an error shows of what a peer sent
_LONGEST = 1000


class Encoded(NamedTuple):
    """A value ready for `frames.pack`."""

    header: bytes
    buffers: list[memoryview]


def encode(value: Any, place: str = "value") -> Encoded:
    """Returns `value` as a header and the large memory beside it.

    Args:
        value: What to send.
        place: What the value is called in an error, for instance `args`.

    Raises:
        EncodeError: A part of it is not serializable; the error says which.
    """
    writer = Writer()
    try:
        try:
            header = pack_plain(value) if is_native(value) else writer.header(value)
        except _RARE:
            writer.start_over()
            header = writer.header(value)
    except Refused as refused:
        kind = short_name(type(refused.value))
        raise EncodeError(refused.place(place), kind, refused.hint or _hint(refused.value)) from refused.__cause__
    except RecursionError as e:
        raise EncodeError(place, short_name(type(value)), "it is nested too deep") from e
    if len(header) > LONGEST:
        header = pack_plain(writer.extension(WHOLE, writer.buffer(memoryview(header), 0)))
    if len(writer.buffers) > _MOST_BUFFERS:
        hint = f"it holds more than {_MOST_BUFFERS} arrays, tensors and long bytes; join them, or send it in parts"
        raise EncodeError(place, short_name(type(value)), hint)
    return tuple.__new__(Encoded, (header, writer.buffers))  # a third of the time that its own constructor takes


class Received:
    """A header on its way to a value: what was listed before the value is decoded, the value is not.

    Attributes:
        references: The objects of extensions, each once, in order.
    """

    def __init__(self, header: bytes | memoryview, buffers: Sequence[Any] = (), *, context: Any = None) -> None:
        """As `decode`, up to the value; but modules of types are imported, as for arguments they must be."""
        self._reader = Reader(buffers, context, imports=True)
        try:
            self.references, self._value = self._reader.opened(header)
        except Exception as e:
            _raise(e)

    def value(self, instead: Sequence[Any] | None = None) -> Any:
        """Decodes the value; once.

        Args:
            instead: What stands in the places of `references`, as many; None: they themselves.

        Raises:
            DecodeError: These are not an encoded value, or they name a type that is refused.
        """
        if not self.references:
            return self._value
        try:
            return self._reader.closed(self.references if instead is None else instead)
        except Exception as e:
            _raise(e)


def decode(header: bytes | memoryview, buffers: Sequence[Any] = (), *, context: Any = None) -> Any:
    """Returns the value that `encode` made `header` and `buffers` from. It imports no module that is not loaded.

    Args:
        header: Is copied from, not kept.
        buffers: Writable memory; arrays and tensors will view it.
        context: Handed to the `decode` of extensions. Tensors go to `context.tensor_device` where it has one.

    Raises:
        DecodeError: These are not an encoded value, or they name a type that is refused.
    """
    reader = Reader(buffers, context)
    try:
        listed, value = reader.opened(header)
        return reader.closed(listed) if listed else value
    except Exception as e:
        _raise(e)


def decode_message(kind: type[T], header: bytes | memoryview, buffers: Sequence[Any], sender: str) -> T:
    """Returns the struct of `protocol`, or the value made of such, that `encode` made `header` from, at once.

    Raises:
        ProtocolError: A field is missing, unknown or of another type; see `from_plain`.
        DecodeError: See `decode`.
    """
    try:
        return msgspec.msgpack.decode(header, type=kind)
    except msgspec.DecodeError:  # or it holds what msgpack has no form for: text that is no UTF-8, for instance
        return from_plain(kind, decode(header, buffers), sender)


def _raise(e: Exception) -> NoReturn:
    """Raises whatever went wrong while bytes were decoded as a DecodeError of bounded length."""
    if isinstance(e, DecodeError):
        raise e if len(str(e)) <= _LONGEST else DecodeError(e.what[:_SEEN], str(e.seen)[:_SEEN]) from None
    if isinstance(e, RolecallError):  # an extension's own
        raise e
    # Hostile content can trip any check in the constructors of datetime, numpy, torch, ...
    raise DecodeError("not a valid encoded value", f"{type(e).__name__}: {e}"[:_SEEN]) from e


def extension(
    code: int, cls: type, pack: Callable[[Sequence[Any]], bytes], read: Callable[[bytes, Any], list[Any]]
) -> None:
    """Adds a type of another layer. A value holds objects of one such type.

    Its objects lie in a list before the value that refers to them, each once, so that the receiver may put something
    else in their places while it decodes the value (see `Received`).

    Args:
        code: One for each type, the same on both sides.
        cls: Exactly this class, not its subclasses.
        pack: Returns all objects of a value as bytes.
        read: Gets these bytes and the `context` of `rolecall.transport.codec.decode`; returns the objects.
    """
    ENCODERS[cls] = lambda writer, value: writer.listed(code, value)
    LISTED_TYPES[code] = Listed(pack, read)


def register_type(
    code: int, cls: type, encode: Callable[[Any], Any], decode: Callable[[Any], Any], *, subclasses: bool = False
) -> None:
    """Makes a type serializable that is not, or otherwise than it is, in this process; call it in both.

    A worker has to know a type before a value of it arrives: register it where the module of the engine is loaded.

    Args:
        code: From 1 to 127, one for each type, the same everywhere.
        cls: The class. What this says comes before the codec's own rule, for a dataclass say.
        encode: Returns something serializable; what it is made of may be handles and other registered types.
        decode: Gets that, in a worker with tensors in the places of handles; returns the object.
        subclasses: Take those of the class as well, where they have no rule of their own; else exactly the class.

    Raises:
        ValueError: The code is taken by another class, or out of range.
    """
    if code not in _CODES:
        raise ValueError(f"code {code} of {cls.__qualname__} is not from 1 to 127")
    taken = _registered.setdefault(code, short_name(cls))
    if taken != short_name(cls):  # the same class of a module loaded again is fine
        raise ValueError(f"code {code} of {cls.__qualname__} is taken by {taken}")

    def rule(writer: Writer, value: Any) -> Any:
        return writer.extension(code, writer.plain(encode(value)))

    ENCODERS[cls] = rule
    DECODERS[code] = lambda reader, data: decode(reader.value(data))
    if subclasses:
        RESOLVERS.insert(0, lambda kind: rule if issubclass(kind, cls) else None)


def _hint(value: Any) -> str:
    if callable(value):
        return "functions and classes cannot be sent; pass the name of one that the receiver can look up"
    if hasattr(value, "__next__") or hasattr(value, "__aiter__"):
        return "make it a list, or stream it from a generator method"
    if isinstance(value, tzinfo):
        return "use zoneinfo.ZoneInfo or datetime.timezone"
    if isinstance(value, dict | list | tuple | str | bytes | int | float):
        return f"make it a plain {next(k.__name__ for k in _PLAIN if isinstance(value, k))}"
    return "make it a dataclass, or send what it is made from"


_PLAIN = (dict, list, tuple, str, bytes, int, float)
