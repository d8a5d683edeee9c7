"""What all structs that cross the border of a process have in common, and the one way in and out of plain values.

Unknown fields are refused, and so are missing ones that have no default: two processes that disagree about a message
must say so, not guess.
"""

from __future__ import annotations

import json
from typing import Any, TypeVar

import msgspec

from rolecall.errors import ProtocolError

T = TypeVar("T")


class Message(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of the structs here. Subclasses repeat `kw_only=True`, which msgspec does not inherit."""


def to_plain(message: Any) -> Any:
    """A message, or a list of them, as dicts, lists and scalars, which every codec here can carry."""
    return msgspec.to_builtins(message)


def from_plain(kind: type[T], value: Any, sender: str, name: str = "") -> T:
    """The message of type `kind` that `value` holds.

    Args:
        sender: Who sent it, for the error.
        name: What the error calls the message; the name of its struct by default.

    Raises:
        ProtocolError: A field is missing, unknown or of another type; names it, the struct and the sender.
    """
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as e:
        raise malformed(name or _name(kind), sender, str(e)) from e


def malformed(name: str, sender: str, problem: str) -> ProtocolError:
    """The error for a message that is not what its receiver expects."""
    return ProtocolError(f"malformed {name} from {sender}: {problem}")


def from_json(kind: type[T], raw: bytes, sender: str) -> T:
    """As `from_plain`, from JSON text.

    Raises:
        ProtocolError: It is no JSON, or no such message.
    """
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError) as e:
        raise malformed(_name(kind), sender, str(e)) from e
    return from_plain(kind, value, sender)


def to_json(message: Any, indent: int | None = None) -> str:
    """A message as ASCII text on one line (without `indent`).

    By the standard library: names of files may hold bytes that are no UTF-8, which msgspec refuses to write.
    """
    return json.dumps(to_plain(message), indent=indent)


def _name(kind: Any) -> str:
    return getattr(kind, "__name__", str(kind))
