"""Rules for the user's own types: enums, named tuples, dataclasses, msgspec Structs, pydantic models.

An object travels as its type's name and its state. It is put together again as a pickle would do it, from the state:
no `__init__`, no `__post_init__`, no validator runs (a Struct's `__post_init__` does, as msgspec has no way around it).
Attributes beside the fields travel too; what a `cached_property` keeps does not.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterable, Sequence
from enum import Enum, Flag
from functools import cached_property
from inspect import getattr_static
from operator import attrgetter
from typing import Any

import msgspec

from rolecall.errors import DecodeError
from rolecall.protocol.message import Message, to_plain
from rolecall.transport.codec.places import Refused
from rolecall.transport.codec.reader import DECODERS, Reader
from rolecall.transport.codec.type_names import name_of
from rolecall.transport.codec.writer import RESOLVERS, ROWS, Encode, Rows, Writer

ENUM, NAMEDTUPLE, DATACLASS, STRUCT, MODEL, DATACLASSES = -30, -31, -32, -33, -34, -38

_BUILT_IN_BASES = (dict, list, tuple, set, frozenset, str, bytes, bytearray, int, float, complex)
_UNSENT = object()  # of a field with init=False that is not set yet


def named(kind: type, encode: Callable[[Writer, Any, str], Any]) -> Encode:
    """Makes the rule of a type that travels by name. A type without a usable name is refused when a value is met."""
    try:
        name = name_of(kind)
    except LookupError:  # it may get one, when the module that is being run now comes to its end
        return lambda writer, value: encode(writer, value, _name_or_refuse(value))
    return lambda writer, value: encode(writer, value, name)


def _name_or_refuse(value: Any) -> str:
    try:
        return name_of(type(value))
    except LookupError as e:
        raise Refused(value, str(e)) from None


def own_attributes(value: Any, fields: Iterable[str]) -> dict[str, Any]:
    """What an object's `__dict__` holds beside its fields, without what can be computed again."""
    attributes: dict[str, Any] = getattr(value, "__dict__", {})
    if attributes.keys() <= set(fields):
        return {}
    kind = type(value)
    return {
        name: item
        for name, item in attributes.items()
        if name not in fields
        and not (name.startswith("__") and name != "__notes__")
        and not isinstance(getattr_static(kind, name, None), cached_property)
    }


def set_attributes(value: Any, attributes: dict[str, Any]) -> None:
    """Puts attributes that are no fields back, unless they would hide what the class defines."""
    kind = type(value)
    for name, item in attributes.items():
        defined = getattr_static(kind, name, None)
        special = type(name) is not str or (name.startswith("__") and name != "__notes__")
        if special or callable(defined) or hasattr(type(defined), "__get__"):
            raise DecodeError(f"attribute of a {kind.__qualname__} refused", name)
        value.__dict__[name] = item


def _state(found: Any) -> dict[str, Any]:
    if type(found) is not dict:
        raise DecodeError("state of an object is no dict", type(found).__name__)
    return found


def _check_names(name: str, found: Iterable[Any], known: Iterable[str]) -> None:
    if unknown := set(found).difference(known):
        raise DecodeError(f"{name} has no fields of these names", list(unknown))


def _plain_values(writer: Writer, state: dict[str, Any]) -> dict[str, Any]:
    return dict(zip(state, writer.each(list(state.values())), strict=True))


# --- enums ---


def _enum(writer: Writer, value: Enum, name: str) -> Any:
    if type(value).__members__.get(value.name) is value:  # a combination of flags has no member of its own
        return writer.extension(ENUM, [name, value.name])
    return writer.extension(ENUM, [name, writer.plain(value.value)])


def _decode_enum(reader: Reader, data: memoryview) -> Any:
    name, member = reader.items(data, 2)
    cls = reader.resolve(name, Enum)
    if type(member) is int and issubclass(cls, Flag):
        return cls(member)
    if type(member) is not str or member not in cls.__members__:
        raise DecodeError(f"{name} has no member of that name", member)
    return cls.__members__[member]


# --- named tuples ---


def is_named_tuple(cls: type) -> bool:
    return issubclass(cls, tuple) and isinstance(getattr(cls, "_fields", None), tuple) and hasattr(cls, "_make")


def _decode_named_tuple(reader: Reader, data: memoryview) -> Any:
    name, *items = reader.items(data)
    cls = reader.resolve(name, tuple, is_named_tuple, "named tuple")
    if len(items) != len(cls._fields):
        raise DecodeError(f"{name} has another number of fields", len(items))
    return tuple.__new__(cls, items)


# --- dataclasses ---


def is_dataclass(cls: type) -> bool:
    return dataclasses.is_dataclass(cls) and not issubclass(cls, _BUILT_IN_BASES)


def _field_names(cls: type) -> list[str]:
    return [field.name for field in dataclasses.fields(cls)]


def _dataclass_rule(cls: type) -> Encode:
    names = _field_names(cls)

    def encode(writer: Writer, value: Any, name: str) -> Any:
        own = {field: item for field in names if (item := getattr(value, field, _UNSENT)) is not _UNSENT}
        extra = own_attributes(value, names)
        states = [own, extra] if extra else [own]
        return writer.extension(DATACLASS, [name, *(_plain_values(writer, state) for state in states)])

    return named(cls, encode)


def _decode_dataclass(reader: Reader, data: memoryview) -> Any:
    name, state, *extra = reader.items(data)
    cls = reader.resolve(name, object, is_dataclass, "dataclass")
    value = object.__new__(cls)
    _check_names(name, _state(state), _field_names(cls))
    for field, item in state.items():
        object.__setattr__(value, field, item)
    for attributes in extra:
        set_attributes(value, _state(attributes))
    return value


def _dataclass_rows(cls: type) -> Rows:
    """The rule for a list of these; it takes none with attributes beside the fields, or with a field not set."""
    names = _field_names(cls)
    getters, known = [attrgetter(name) for name in names], frozenset(names)

    def encode(writer: Writer, rows: Sequence[Any]) -> Any:
        if not names or (cls.__dictoffset__ and not all(map(known.issuperset, map(vars, rows)))):
            return None
        try:
            name, found = name_of(cls), [list(map(getter, rows)) for getter in getters]
        except (LookupError, AttributeError):  # it says so when it is met alone
            return None
        return writer.extension(DATACLASSES, [name, names, *map(writer.column, found)])

    return encode


def _decode_dataclasses(reader: Reader, data: memoryview) -> Any:
    name, names, *found = reader.items(data)
    cls = reader.resolve(name, object, is_dataclass, "dataclass")
    if type(names) is not list or len(set(names)) != len(found) or len(names) != len(found):
        raise DecodeError(f"{name} has another number of columns than names of fields", len(found))
    _check_names(name, names, _field_names(cls))
    values = [object.__new__(cls) for _ in reader.columns(found)[0]]
    assign = object.__setattr__
    for field, column in zip(names, found, strict=True):
        for value, item in zip(values, column, strict=True):
            assign(value, field, item)
    return values


# --- msgspec Structs ---


def _message(writer: Writer, value: Message) -> Any:
    """A struct of `protocol` travels as its fields, which msgspec packs: its receiver knows the type."""
    return writer.plain(to_plain(value)) if writer.careful else value


def _struct(writer: Writer, value: msgspec.Struct, name: str) -> Any:
    state = {field: getattr(value, field) for field in value.__struct_fields__}
    return writer.extension(STRUCT, [name, _plain_values(writer, state)])


def _decode_struct(reader: Reader, data: memoryview) -> Any:
    name, state = reader.items(data, 2)
    return reader.resolve(name, msgspec.Struct)(**_state(state))


# --- pydantic models ---


def is_model(cls: type) -> bool:
    main = sys.modules.get("pydantic.main")
    return main is not None and issubclass(cls, main.BaseModel)


def _model(writer: Writer, value: Any, name: str) -> Any:
    fields = type(value).model_fields
    own = {field: item for field, item in value.__dict__.items() if field in fields}
    state, extra, private = (
        None if found is None else _plain_values(writer, found)
        for found in (own, value.__pydantic_extra__, value.__pydantic_private__)
    )
    return writer.extension(MODEL, [name, state, sorted(value.__pydantic_fields_set__), extra, private])


def _decode_model(reader: Reader, data: memoryview) -> Any:
    name, state, fields_set, extra, private = reader.items(data, 5)
    cls = reader.resolve(name, object, is_model, "pydantic model")
    if (extra is not None) != (cls.model_config.get("extra") == "allow"):
        raise DecodeError(f"{name} takes no extra fields, or must have them", extra)
    _check_names(name, _state(state), cls.model_fields)
    _check_names(name, _state(private or {}), cls.__private_attributes__)
    value = cls.__new__(cls)
    object.__setattr__(value, "__dict__", state)
    object.__setattr__(value, "__pydantic_fields_set__", set(fields_set))
    object.__setattr__(value, "__pydantic_extra__", extra)
    object.__setattr__(value, "__pydantic_private__", private)
    return value


def _rule_of(kind: type) -> Encode | None:
    """The rule for a user's type."""
    if issubclass(kind, Enum):
        return named(kind, _enum)
    if is_named_tuple(kind):
        return named(kind, lambda writer, value, name: writer.extension(NAMEDTUPLE, [name, *map(writer.plain, value)]))
    if issubclass(kind, Message):
        return _message
    if issubclass(kind, msgspec.Struct):
        return named(kind, _struct)
    if is_model(kind):
        return named(kind, _model)
    if is_dataclass(kind):
        ROWS[kind] = _dataclass_rows(kind)
        return _dataclass_rule(kind)
    return None


RESOLVERS.append(_rule_of)
DECODERS[ENUM] = _decode_enum
DECODERS[NAMEDTUPLE] = _decode_named_tuple
DECODERS[DATACLASS] = _decode_dataclass
DECODERS[DATACLASSES] = _decode_dataclasses
DECODERS[STRUCT] = _decode_struct
DECODERS[MODEL] = _decode_model
