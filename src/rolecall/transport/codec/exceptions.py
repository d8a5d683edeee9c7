"""Rules for exceptions: as themselves where type and state travel, else as a `RemoteError` with what can be said.

- An error of our tree is sent as its facts and made again from them; a fact that is not serializable is sent as its
  `repr`.
- Any other `Exception` whose type may be named (see `type_names`) travels as `args` and attributes, and is put
  together from them without its own `__init__`.
- Everything else, also what is found not to be rebuildable only where it arrives, becomes a `RemoteError`. So does what
  is no `Exception` (`SystemExit`, `KeyboardInterrupt`, `CancelledError`): a remote one must not end the receiver.

The traceback's text travels along and is the attribute `remote_traceback` of the decoded exception.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import Any

from rolecall.errors import CodecError, DecodeError, RemoteError, RolecallError, printable
from rolecall.transport.codec.native import encode as pack_plain
from rolecall.transport.codec.places import Refused, shown
from rolecall.transport.codec.reader import DECODERS, Reader
from rolecall.transport.codec.user_types import named, own_attributes, set_attributes
from rolecall.transport.codec.writer import RESOLVERS, Encode, Writer

EXCEPTION, OWN_ERROR, STAND_IN = -35, -36, -37

_TRACEBACK = "remote_traceback"
_LONGEST = 64 << 10  # characters of a message or traceback
_HEAD = 16 << 10  # of these, from its beginning
# What built-in exceptions keep neither in args nor in __dict__. AttributeError.obj and NameError's frame stay behind.
_KEPT_APART: dict[type[Exception], tuple[str, ...]] = {
    ImportError: ("name", "path"),
    NameError: ("name",),
    AttributeError: ("name",),
    OSError: ("filename", "filename2"),
}


def full_name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def short_name(kind: type) -> str:
    """The full name, without the module where that is `builtins`."""
    return full_name(kind).removeprefix("builtins.")


def describe(exc: BaseException) -> tuple[str, str, str]:
    """Returns an exception's type, message and traceback as text. It never fails, whatever `__str__` does."""
    return short_name(type(exc)), message_of(exc), traceback_text(exc)


def said(exc: BaseException) -> str:
    """An exception's type and message; never fails either."""
    return f"{type(exc).__name__}: {message_of(exc)}"


def message_of(exc: BaseException) -> str:
    """An exception's message, without its middle where it is long; never fails either."""
    try:
        message = str(exc)
    except BaseException:  # the user's __str__ may do anything, and raise SystemExit
        message = shown(exc)
    return _clean(message)


def traceback_text(exc: BaseException) -> str:
    """The traceback as text: of the process where it was raised, if that was another one."""
    remote = exc.__dict__.get(_TRACEBACK, "")
    return _clean(str(remote) if exc.__traceback__ is None or remote else format_traceback(exc))


def format_traceback(exc: BaseException) -> str:
    """The traceback in this process as text, without its middle where it is long; never fails either."""
    try:
        return _clean("".join(traceback.format_exception(exc)))
    except BaseException as e:
        return f"no traceback: {type(e).__name__} was raised while it was formatted"


def _clean(text: str) -> str:
    if len(text) > _LONGEST:
        left_out = f"\n[... {len(text) - _LONGEST:,} characters left out ...]\n"
        text = text[:_HEAD] + left_out + text[_HEAD - _LONGEST :]
    return text.encode("utf-8", "backslashreplace").decode()


def _attempt(writer: Writer, make: Callable[[], Any], instead: Callable[[], Any]) -> Any:
    """Returns `make()`; when something in it is not serializable takes its buffers back and returns `instead()`."""
    count = len(writer.buffers)
    try:
        return make()
    except Refused:
        del writer.buffers[count:]
        return instead()


# --- errors of our tree ---


def _own_error(writer: Writer, exc: RolecallError, name: str) -> Any:
    args, kwargs = exc.facts
    facts = [_fact(writer, fact) for fact in args], {key: _fact(writer, fact) for key, fact in kwargs.items()}
    notes = list(map(str, getattr(exc, "__notes__", ())))
    return writer.extension(OWN_ERROR, [name, *facts, _clean(traceback_text(exc)), notes])


def _fact(writer: Writer, fact: Any) -> Any:
    return _attempt(writer, lambda: writer.plain(fact), lambda: shown(fact))


def _decode_own_error(reader: Reader, data: memoryview) -> Any:
    name, args, kwargs, trace, notes = reader.items(data, 5)
    cls = reader.resolve(name, RolecallError)
    if any(type(fact) is range for fact in (*args, *kwargs.values())):  # a constructor may make a list of it
        raise DecodeError("a range as a fact of an error", name)
    exc = cls(*args, **kwargs)
    for note in notes:
        exc.add_note(printable(note))
    return _with_traceback(exc, trace)


def _with_traceback(exc: Any, trace: str) -> Any:
    if trace:
        exc.__dict__[_TRACEBACK] = trace
    return exc


# --- all others ---


def _exception(writer: Writer, exc: Exception, name: str) -> Any:
    attributes = own_attributes(exc, (_TRACEBACK,))
    attributes |= {name: getattr(exc, name) for name in _kept_apart(exc) if getattr(exc, name) is not None}
    # Packed apart, so that the receiver can still say what happened where a type inside is unknown to it.
    state = pack_plain([writer.plain(exc.args), writer.plain(attributes)])
    return writer.extension(EXCEPTION, [name, *describe(exc)[1:], state])


def _kept_apart(exc: Exception) -> set[str]:
    return {name for kind, names in _KEPT_APART.items() if isinstance(exc, kind) for name in names}


def _stand_in(writer: Writer, exc: BaseException) -> Any:
    return writer.extension(STAND_IN, list(describe(exc)))


def _decode_exception(reader: Reader, data: memoryview) -> Any:
    name, message, trace, state = reader.items(data, 4)
    try:
        cls = reader.resolve(name, Exception)
        args, attributes = reader.items(state, 2)
        return _with_traceback(_rebuilt(cls, args, attributes), trace)
    except CodecError:
        return _remote_error(name.replace(":", "."), message, trace)


def _remote_error(*parts: Any) -> RemoteError:
    if not all(type(part) is str for part in parts):
        raise DecodeError("description of an exception is no text")
    return RemoteError(*parts)


def _rebuilt(cls: type[Exception], args: tuple[Any, ...], attributes: dict[str, Any]) -> Exception:
    if type(args) is not tuple or type(attributes) is not dict:
        raise DecodeError("state of an exception is not a tuple and a dict")
    native: Any = next(base for base in cls.__mro__ if base.__module__ == "builtins")
    try:
        exc = cls.__new__(cls, *args)
        native.__init__(exc, *args)  # fills what the built-in type keeps in C, without the user's own __init__
        exc.args = args
        for name in _kept_apart(exc) & attributes.keys():
            setattr(exc, name, attributes.pop(name))
    except Exception as e:  # a type may refuse any arguments
        raise DecodeError(f"a {cls.__qualname__} cannot be made again", str(e)) from e
    set_attributes(exc, attributes)
    return exc


def _rule_of(kind: type) -> Encode | None:
    if not issubclass(kind, BaseException):
        return None
    if not issubclass(kind, Exception):
        return _stand_in
    by_name = named(kind, _own_error if issubclass(kind, RolecallError) else _exception)
    return lambda writer, exc: _attempt(writer, lambda: by_name(writer, exc), lambda: _stand_in(writer, exc))


RESOLVERS.insert(0, _rule_of)  # before the user's types: an exception may be a dataclass as well
DECODERS[EXCEPTION] = _decode_exception
DECODERS[OWN_ERROR] = _decode_own_error
DECODERS[STAND_IN] = lambda reader, data: _remote_error(*reader.items(data, 3))
