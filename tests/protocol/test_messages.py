"""Every struct that crosses the border of a process: strict, and the same on the other side."""

from __future__ import annotations

import functools
import importlib
import os
import pkgutil
import types
import typing
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rolecall import protocol
from rolecall.errors import ProtocolError
from rolecall.protocol.guard import ProcessSpec, Start
from rolecall.protocol.message import Message, from_json, from_plain, to_plain
from rolecall.transport import codec

# Fields that hold whatever a user passes on; everything else has a type.
FREE = {("CallMethod", "rpc_meta"), ("Configure", "config"), ("JoinCluster", "init")}


def structs() -> Iterator[type[msgspec.Struct]]:
    """All structs of the package but the bases, which nobody sends."""
    seen: set[type] = set()
    for info in pkgutil.iter_modules(protocol.__path__, "rolecall.protocol."):
        for kind in vars(importlib.import_module(info.name)).values():
            if isinstance(kind, type) and issubclass(kind, msgspec.Struct) and kind not in seen:
                seen.add(kind)
                if kind is not Message:
                    yield kind


STRUCTS = sorted(structs(), key=lambda kind: (kind.__module__, kind.__name__))
REQUIRED = [(kind, field.name) for kind in STRUCTS for field in msgspec.structs.fields(kind) if field.required]


@functools.cache
def anything(kind: type[msgspec.Struct]) -> st.SearchStrategy[Any]:
    """Any value of a struct."""
    hints = typing.get_type_hints(kind, include_extras=True)
    parts = {field.name: of_type(hints[field.name]) for field in msgspec.structs.fields(kind)}
    return st.fixed_dictionaries(parts).map(lambda found: kind(**found))


def of_type(hint: Any) -> st.SearchStrategy[Any]:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    match origin:
        case typing.Annotated:
            text = [meta for meta in args[1:] if getattr(meta, "pattern", None)]
            return st.just("0" * 32) if text else st.integers(1, 64)
        case typing.Literal:
            return st.sampled_from(args)
        case typing.Union | types.UnionType:
            return st.one_of(*map(of_type, args))
    if origin is list:
        return st.lists(of_type(args[0]), max_size=2)
    if origin is tuple and args[1:] == (...,):
        return st.lists(of_type(args[0]), max_size=2).map(tuple)
    if origin is tuple:
        return st.tuples(*map(of_type, args))
    if origin is dict:
        return st.dictionaries(of_type(args[0]), of_type(args[1]), max_size=2)
    if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
        return anything(hint)
    if hint is Any:
        return st.none()
    simple = {
        str: st.text(max_size=8).filter(lambda text: text.isprintable()),
        bytes: st.binary(max_size=8),
        int: st.integers(-(2**31), 2**31),
        float: st.floats(allow_nan=False, allow_infinity=False),
        bool: st.booleans(),
        type(None): st.none(),
    }
    return simple[hint]


def plain(kind: type[msgspec.Struct]) -> dict[str, Any]:
    """One value of a struct as it travels, every field in it."""
    hints = typing.get_type_hints(kind, include_extras=True)
    return {field.name: example(hints[field.name]) for field in msgspec.structs.fields(kind)}


def example(hint: Any) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return "0" * 32 if args[0] is str else 1
    if origin is typing.Literal:
        return args[0]
    if origin in (typing.Union, types.UnionType):
        return example(args[0])
    if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
        return plain(hint)
    if args[1:] == (...,):
        return [example(args[0])]
    values = {list: [], dict: {}, tuple: [1, 1], str: "a", bytes: b"a", int: 1, float: 1.0, bool: True, Any: None}
    return values[origin or hint]


def received(kind: type[Any], sent: Any, sender: str = "the other side") -> Any:
    """What arrives over a connection where `kind` is expected."""
    return codec.decode_message(kind, *codec.encode(sent), sender)


@pytest.mark.parametrize("kind", STRUCTS, ids=lambda kind: kind.__name__)
@given(data=st.data())
@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
def test_a_message_arrives_as_it_was_sent(kind: type[msgspec.Struct], data: st.DataObject) -> None:
    """Plain values, JSON and msgpack give back an equal struct."""
    sent = data.draw(anything(kind))
    assert received(kind, sent) == sent
    if kind.__name__ != "ForkSpec":  # its environment is bytes, which only msgpack has
        assert from_plain(kind, to_plain(sent), "the other side") == sent
        assert from_json(kind, msgspec.json.encode(sent), "the other side") == sent


@pytest.mark.parametrize("kind", STRUCTS, ids=lambda kind: kind.__name__)
def test_an_unknown_field_is_refused(kind: type[msgspec.Struct]) -> None:
    """The error names the field, the struct and who has sent it."""
    value = plain(kind) | {"no_such_field": 1}
    for read in (from_plain, received):
        with pytest.raises(ProtocolError, match=f"malformed {kind.__name__} from guard g0.*no_such_field"):
            read(kind, value, "guard g0")


@pytest.mark.parametrize(("kind", "name"), REQUIRED, ids=lambda each: getattr(each, "__name__", each))
def test_a_missing_field_is_refused(kind: type[msgspec.Struct], name: str) -> None:
    """A field without a default must be said."""
    value = plain(kind)
    del value[name]
    for read in (from_plain, received):
        with pytest.raises(ProtocolError, match=f"malformed {kind.__name__} .*missing required field `{name}`"):
            read(kind, value, "guard g0")


def test_what_is_no_utf8_and_lists_of_structs_arrive() -> None:
    """A name of a file may hold any bytes; the answer to `table` is a list of structs."""
    odd = ProcessSpec(worker_id="a/0", cwd=os.fsdecode(b"/tmp/\xff"), env={"X": os.fsdecode(b"\xfe")})
    assert received(ProcessSpec, odd) == odd
    many = [ProcessSpec(worker_id=f"a/{n}") for n in range(20)]
    assert received(Start, Start(specs=many)).specs == received(list[ProcessSpec], many) == many
    assert received(list[ProcessSpec], [*many, odd]) == [*many, odd]


@pytest.mark.parametrize("kind", STRUCTS, ids=lambda kind: kind.__name__)
def test_every_field_has_a_type(kind: type[msgspec.Struct]) -> None:
    """No struct hides an untyped value, but where it passes on what a user has given."""
    hints = typing.get_type_hints(kind)
    untyped = {(kind.__name__, name) for name, hint in hints.items() if "Any" in str(hint)}
    assert untyped <= FREE
