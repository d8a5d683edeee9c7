"""What the codec promises: what travels arrives as it was, bit for bit; what does not is named with its place."""

from __future__ import annotations

import collections
import ctypes
import dataclasses
import datetime as dt
import enum
import json
import math
import subprocess
import sys
import threading
import uuid
import warnings
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, Generic, NamedTuple, TypeVar
from zoneinfo import ZoneInfo

import msgspec
import numpy as np
import pydantic
import pytest
import torch

from rolecall import errors
from rolecall.errors import DecodeError, EncodeError, RemoteError
from rolecall.transport.codec import decode, encode, extension, register_type
from rolecall.transport.codec.plain import SLICE
from rolecall.transport.codec.reader import DECODERS, LISTED_TYPES
from rolecall.transport.codec.tensors import SMALL_TENSORS
from rolecall.transport.codec.user_types import DATACLASS, ENUM
from rolecall.transport.codec.writer import ENCODERS, RESOLVERS, Writer
from rolecall.transport.frames import FrameReader, pack

T = TypeVar("T")


def sent(value: Any, **options: Any) -> Any:
    """`value` after a journey through bytes, received as a connection receives it."""
    encoded = encode(value)
    wire = memoryview(b"".join(pack(*encoded)))
    reader = FrameReader()
    frames: list[Any] = []
    while len(wire):
        target = reader.get_buffer()
        n = min(len(target), len(wire))
        target[:n] = wire[:n]
        wire = wire[n:]
        frames += reader.buffer_updated(n)
    [(header, buffers)] = frames
    return decode(header, buffers, **options)


class Color(enum.Enum):
    RED = "r"
    BLUE = "b"
    SCARLET = "r"


class Level(enum.IntEnum):
    LOW = 1


class Word(enum.StrEnum):
    HI = "hi"


class Bits(enum.Flag):
    A = 1
    B = 2
    AB = 3


class Point(NamedTuple):
    x: int
    y: Any = 0


@dataclasses.dataclass
class Config:
    name: str = ""
    inner: Any = None
    count: int = dataclasses.field(default=3, init=False)
    fn: Any = None

    class Nested(enum.Enum):
        DEEP = 1


@dataclasses.dataclass(frozen=True, slots=True)
class Frozen:
    a: int
    b: tuple[int, ...] = ()


@dataclasses.dataclass
class Box(Generic[T]):
    item: T
    late: int = dataclasses.field(init=False)


@dataclasses.dataclass
class Counted:
    n: int
    runs = 0

    def __post_init__(self) -> None:
        type(self).runs += 1
        self.extra = {"n": self.n}


class Spec(msgspec.Struct, kw_only=True):
    a: int
    b: Any = None


class FrozenSpec(msgspec.Struct, frozen=True, tag="x"):
    a: int


class Model(pydantic.BaseModel):
    a: int
    b: Any = None
    _secret: int = 5


class Open(pydantic.BaseModel, extra="allow"):
    a: int = 0


class Custom(Exception):
    def __init__(self, code: int, *, detail: str) -> None:
        super().__init__(f"code {code}")
        self.code, self.detail = code, detail


class Unreadable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


UTC5 = dt.timezone(dt.timedelta(hours=5, minutes=30), "IST")
PLAIN: list[Any] = [
    None,
    True,
    False,
    0,
    -1,
    2**63,
    2**64 - 1,
    2**64,
    -(2**63) - 1,
    10**100,
    -(10**100),
    0.5,
    math.inf,
    -math.inf,
    "",
    "snow ☃ 🎉",
    "lone \ud800 surrogate",
    b"",
    b"abc",
    b"x" * 5000,
    bytearray(b"abc"),
    bytearray(10_000),
    [],
    [1, [2, [3]]],
    (),
    (1,),
    (1, (2, [3, (4,)])),
    set(),
    {1, "a", (2, 3)},
    frozenset({1, frozenset({2})}),
    {},
    {"a": 1},
    {1: 2, None: 3, 2.5: 4},
    {(1, 2): "t", b"k": 1, Color.RED: 2},
    {"\udc80": 2**70},
    collections.OrderedDict([("b", 1), ("a", 2)]),
    collections.defaultdict(list, {"a": [1]}),
    collections.deque([1, 2], maxlen=3),
    1 + 2j,
    slice(1, None, 2),
    slice("a", (1,)),
    range(3, 10, 2),
    range(2**80),
    ...,
    NotImplemented,
    msgspec.UNSET,
    dt.datetime(2024, 2, 29, 1, 2, 3, 4),
    dt.datetime(2024, 1, 1, tzinfo=dt.timezone.utc),  # noqa: UP017
    dt.datetime(2024, 1, 1, tzinfo=UTC5),
    dt.datetime(2024, 10, 27, 2, 30, fold=1, tzinfo=ZoneInfo("Europe/Berlin")),
    dt.date(1, 1, 1),
    dt.time(1, 2, 3, 4, UTC5, fold=1),
    dt.timedelta(-1, 5, 7),
    UTC5,
    ZoneInfo("UTC"),
    Path("/a/b"),
    PurePosixPath("x"),
    PureWindowsPath("c:\\x"),
    Path("odd-\udcff"),
    Decimal("1.50"),
    Decimal("-Infinity"),
    uuid.UUID(int=7),
    Color.RED,
    Color.SCARLET,
    Level.LOW,
    Word.HI,
    Bits.A,
    Bits.AB,
    Bits(0),
    Config.Nested.DEEP,
    Point(1),
    Point(1, (2, Point(3))),
    Config("c", [Config("d")]),
    Frozen(1, (2,)),
    Spec(a=1, b=(2,)),
    FrozenSpec(3),
    Model(a=1, b=[(1,)]),
    Open.model_validate({"a": 1, "more": (2,)}),
    torch.bfloat16,
    torch.device("cuda", 1),
    torch.Size([2, 3]),
    np.dtype("<M8[ns]"),
    np.dtype([("a", "i4"), ("b", "f8", 2)]),
]


def same(a: Any, b: Any) -> bool:
    return type(a) is type(b) and (a == b or a is b) and repr(a) == repr(b)


@pytest.mark.parametrize("value", PLAIN, ids=lambda v: type(v).__name__)
def test_a_value_arrives_as_it_was(value: Any) -> None:
    """A value of every supported type decodes to an equal value of the same type, alone and nested in containers."""
    assert same(sent(value), value)
    assert same(sent({"key": [(value,)]}), {"key": [(value,)]})


def test_floats_keep_their_bits() -> None:
    """NaN stays NaN and negative zero keeps its sign."""
    assert math.isnan(sent(math.nan)) and math.copysign(1, sent(-0.0)) == -1


def test_a_memoryview_arrives_as_a_view_of_the_received_memory() -> None:
    """The view is writable, keeps its shape, and a strided or empty one arrives with its values."""
    view = sent(memoryview(bytearray(range(100)) * 100))
    assert isinstance(view, memoryview) and not view.readonly and view.nbytes == 10_000
    matrix = memoryview(np.arange(6, dtype=np.int32).reshape(2, 3))  # type: ignore[arg-type]  # mypy of Python 3.11
    assert sent(matrix).tolist() == matrix.tolist()
    assert sent(matrix[::-1]).tolist() == matrix[::-1].tolist()
    assert sent(memoryview(b"")).tobytes() == b""


def test_large_memory_stays_out_of_the_header() -> None:
    """Large bytes and tensors travel as buffers beside the header, which stays small."""
    assert len(encode({"b": bytes(1 << 20), "t": torch.zeros(1 << 20)}).header) < 100


def test_a_dataclass_is_put_together_without_running_its_code() -> None:
    """Decoding sets the fields of a dataclass and calls neither `__init__` nor `__post_init__`."""
    value = Counted(3)
    runs = Counted.runs
    got = sent(value)
    assert got == value and got.extra == {"n": 3} and Counted.runs == runs


def test_a_field_that_was_never_set_stays_unset() -> None:
    """A dataclass field without a value arrives as a missing attribute, not as a default."""
    got = sent(Box[int](5))
    assert got.item == 5 and not hasattr(got, "late")


def test_a_model_keeps_private_attributes_and_which_fields_were_set() -> None:
    """A pydantic model arrives with its private attributes and its `model_fields_set`."""
    model = Model(a=1)
    model._secret = 9
    got = sent(model)
    assert got == model and got._secret == 9 and got.model_fields_set == {"a"}


# --- numpy ---


ARRAYS = [
    *(np.arange(10).astype(c) for c in ("?", "i1", "u8", "f2", "f4", "f8", "g", "F", "D", ">i4", ">f8")),
    np.array(["2024-01-01", "NaT"], dtype="M8[ns]"),
    np.array([1, 2], dtype="m8[25s]"),
    np.array(["ab", "ü"]),
    np.array([b"ab", b"c"]),
    np.zeros((0, 3)),
    np.array(5.0),
    np.array("text"),
    np.arange(24).reshape(2, 3, 4)[:, ::2, ::-1],
    np.asfortranarray(np.arange(6).reshape(2, 3)),
    np.broadcast_to(np.arange(3), (4, 3)),
    np.array([(1, 2.5, "x")], dtype=[("a", ">i2"), ("b", "f8"), ("c", "U3")]),
    np.zeros(3, dtype=np.dtype([("a", "i1"), ("b", [("c", "f8", (2, 2))])], align=True)),
    np.full(1000, np.nan),
    np.zeros(2, dtype="V5"),
]


@pytest.mark.parametrize("array", ARRAYS, ids=lambda a: f"{a.dtype}-{a.shape}")
def test_an_array_keeps_its_bits_dtype_and_shape(array: Any) -> None:
    """A numpy array arrives as a writable array of the same bytes, dtype and shape."""
    got = sent(array)
    assert type(got) is np.ndarray and got.dtype == array.dtype and got.shape == array.shape
    assert got.tobytes() == array.tobytes() and got.flags.writeable


@pytest.mark.parametrize("array", [a for a in ARRAYS if a.size], ids=lambda a: f"{a.dtype}")
def test_a_numpy_scalar_arrives_as_one(array: Any) -> None:
    """A numpy scalar keeps its type, its dtype and its bytes."""
    scalar = array.flat[0] if array.ndim else array[()]
    got = sent(scalar)
    assert type(got) is type(scalar) and got.dtype == scalar.dtype and got.tobytes() == scalar.tobytes()


def test_a_contiguous_array_is_viewed_on_both_sides() -> None:
    """The encoder's buffer is the array's own memory, the decoded array is the received memory; Fortran order stays."""
    array = np.arange(1000.0)
    encoded = encode(array)
    array[0] = 42
    received = [memoryview(bytearray(encoded.buffers[0]))]
    got = decode(encoded.header, received)
    assert got[0] == 42
    received[0].cast("d")[1] = 43
    assert got[1] == 43
    fortran = np.asfortranarray(np.ones((40, 50)))
    assert sent(fortran).flags.f_contiguous


@pytest.mark.parametrize("array", [np.array([object()]), np.zeros(2, dtype=[("a", "O")])])
def test_an_array_with_objects_is_refused(array: Any) -> None:
    """The error names the place of an array whose elements are Python objects."""
    with pytest.raises(EncodeError, match=r"args\['x'\]: .* holds Python objects"):
        encode({"x": array}, "args")


# --- torch ---

DTYPES = sorted(
    {
        d
        for d in vars(torch).values()
        if isinstance(d, torch.dtype) and not str(d).removeprefix("torch.").startswith("q")
    },
    key=str,
)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("count", [64, 4096], ids=["in-the-header", "beside-it"])
@pytest.mark.filterwarnings("ignore:ComplexHalf")
def test_every_dtype_of_torch_keeps_its_bits(dtype: torch.dtype, count: int) -> None:
    """A tensor of any dtype arrives with the same bytes and shape."""
    raw = bytes(i % (2 if dtype is torch.bool else 256) for i in range(count))
    got = sent(torch.frombuffer(bytearray(raw), dtype=dtype).view(2, -1))
    assert got.dtype == dtype and got.shape == (2, count // 2 // dtype.itemsize)
    assert ctypes.string_at(got.data_ptr(), count) == raw


BASE = torch.arange(24.0).reshape(2, 3, 4)
TENSORS = {
    "strided": BASE[:, ::2, 1::2],
    "transposed": BASE.transpose(0, 2),
    "empty": torch.zeros(0, 3),
    "scalar": torch.tensor(3),
    "expanded": torch.arange(3).expand(4, 3),
    "large": torch.arange(100_000),
    "bf16-slice": BASE.bfloat16()[1],
    "conj": torch.tensor([1 + 2j]).conj(),
    "neg": torch.tensor([1 + 2j]).conj().imag,
    "bool": BASE > 3,
    "inference": torch.ones(3),
    "offset": BASE[1:],
    "channels-last": torch.ones(1, 2, 3, 4).to(memory_format=torch.channels_last),
}


@pytest.mark.parametrize("name", TENSORS)
def test_a_tensor_of_any_layout_arrives_with_its_values(name: str) -> None:
    """Strided, expanded, conjugated and other tensors arrive as plain tensors that own their memory."""
    tensor = TENSORS[name]
    got = sent([tensor])[0]
    assert type(got) is torch.Tensor and got.dtype == tensor.dtype and torch.equal(got, tensor)
    got += 1 if got.dtype != torch.bool else True  # received memory is the receiver's own


def test_gradients_stay_behind_and_parameters_arrive_as_tensors() -> None:
    """What requires a gradient arrives as a plain tensor that requires none."""
    parameter = torch.nn.Parameter(torch.ones(200))
    got = sent({"p": parameter, "y": parameter * 2})
    assert type(got["p"]) is torch.Tensor and not got["p"].requires_grad and not got["y"].requires_grad
    assert torch.equal(got["y"], parameter.detach() * 2)


def test_a_contiguous_tensor_is_viewed_not_copied() -> None:
    """The encoder's buffer is the tensor's own memory, and the decoded tensor is the received memory."""
    tensor = torch.zeros(1000)
    encoded = encode(tensor)
    tensor[0] = 42
    received = bytearray(encoded.buffers[0])
    got = decode(encoded.header, [memoryview(received)])
    assert got[0] == 42
    received[4:8] = received[0:4]
    assert got[1] == 42


def test_an_encoded_tensor_keeps_its_memory_alive() -> None:
    """The buffers of an encoded value stay valid when the tensor is dropped."""
    buffers = encode(torch.full((100_000,), 7, dtype=torch.uint8)).buffers
    torch.zeros(100_000, dtype=torch.uint8)
    assert bytes(buffers[0]) == b"\x07" * 100_000


def test_meta_tensors_stay_meta() -> None:
    """A tensor on the meta device arrives with shape and dtype, and no bytes are sent."""
    got = sent(torch.empty(1 << 20, 1 << 20, dtype=torch.bfloat16, device="meta"))
    assert got.is_meta and got.shape == (1 << 20, 1 << 20) and got.dtype == torch.bfloat16


@pytest.mark.parametrize("layout", ["sparse_coo", "sparse_csr", "sparse_csc", "sparse_bsr", "sparse_bsc"])
def test_sparse_tensors_travel_as_their_parts(layout: str) -> None:
    """A sparse tensor of every layout arrives in the same layout with the same values."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # CSR is in beta in torch
        dense = torch.zeros(4, 6)
        dense[1, 2] = 5
        options: Any = {"blocksize": (2, 2)} if layout.startswith("sparse_bs") else {}
        tensor = dense.to_sparse(layout=getattr(torch, layout), **options)
        got = sent(tensor)
        assert got.layout == tensor.layout and torch.equal(got.to_dense(), dense)


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        (torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8), "quantised"),
        (torch.nested.nested_tensor([torch.ones(1), torch.ones(2)]), "nested"),
        (torch.nn.Linear(1, 1), "state_dict"),
        (torch.ones(1).as_subclass(type("Sub", (torch.Tensor,), {})), "as_subclass"),
    ],
    ids=["quantised", "nested", "module", "subclass"],
)
def test_what_torch_has_beyond_that_is_refused_with_a_hint(value: Any, hint: str) -> None:
    """Nested, quantized and other special tensors are refused with their place and what to do instead."""
    with pytest.raises(EncodeError, match=rf"result\.inner\[0\]: .*{hint}"):
        encode(Config(inner=[value]), "result")


def test_a_state_dict_travels() -> None:
    """The ordered dict of a module's parameters arrives as one, with equal tensors."""
    state = torch.nn.Linear(3, 2).state_dict()
    got = sent(state)
    assert type(got) is collections.OrderedDict and all(torch.equal(got[k], state[k]) for k in state)


def test_the_receiver_may_name_the_device_of_tensors() -> None:
    """Tensors are decoded onto the device that the receiver's context names."""

    class Context:
        tensor_device = "meta"

    assert sent(torch.ones(3), context=Context()).is_meta


# --- exceptions ---


def raised(exc: BaseException) -> BaseException:
    try:
        raise exc
    except BaseException as e:
        return e


@pytest.mark.parametrize(
    "exc",
    [
        ValueError("bad", 3),
        KeyError("k"),
        FileNotFoundError(2, "gone", "/x"),
        StopIteration(5),
        ZeroDivisionError(),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"),
        ImportError("no", name="m", path="p"),
        AssertionError(),
        json.JSONDecodeError("bad", "doc", 1),
        subprocess.CalledProcessError(3, ["x"]),
        Custom(4, detail="d"),
        TimeoutError("late"),
    ],
    ids=lambda e: type(e).__name__,
)
def test_an_exception_arrives_as_itself_with_its_traceback(exc: Exception) -> None:
    """Type, arguments, notes, attributes and the remote traceback of an exception arrive."""
    exc.add_note("seen on the way")
    got: Any = sent(raised(exc))
    assert "in raised" in got.remote_traceback
    assert type(got) is type(exc) and got.args == exc.args and str(got) == str(exc)
    assert got.__notes__ == ["seen on the way"]
    for name in ("errno", "filename", "value", "name", "path", "lineno", "returncode", "code", "detail", "object"):
        assert getattr(got, name, None) == getattr(exc, name, None)


def test_an_exception_group_arrives_with_its_exceptions() -> None:
    """A group arrives as a group of the same exceptions."""
    got = sent(ExceptionGroup("both", [ValueError(1), KeyError(2)]))
    assert type(got) is ExceptionGroup and [type(e) for e in got.exceptions] == [ValueError, KeyError]


@pytest.mark.parametrize(
    "exc",
    [
        ValueError(lambda: 0),
        type("Local", (Exception,), {})("gone"),
        SystemExit(3),
        KeyboardInterrupt(),
        Unreadable(lambda: 0),
    ],
    ids=lambda e: type(e).__name__,
)
def test_an_exception_that_cannot_travel_is_stood_in_for(exc: BaseException) -> None:
    """A remote SystemExit must not end the receiver, and an odd attribute must not hide what went wrong."""
    got = sent(raised(exc))
    assert type(got) is RemoteError and type(exc).__name__ in got.remote_type and "in raised" in got.traceback
    assert sent(got).remote_type == got.remote_type


def test_an_exception_unknown_to_the_receiver_is_stood_in_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception whose class, or an argument's class, cannot be imported becomes a RemoteError with its text."""
    encoded = encode(raised(Custom(1, detail="d")))
    inside = encode(ValueError("outer", Color.RED))
    monkeypatch.delattr(sys.modules[__name__], "Custom")
    monkeypatch.delattr(sys.modules[__name__], "Color")
    got = decode(*encoded)
    assert type(got) is RemoteError and got.remote_message == "code 1" and got.remote_type.endswith(".Custom")
    assert type(decode(*inside)) is RemoteError


OWN = [
    errors.WorkerNotFoundError("actr", known=["actor"]),
    errors.WorkerFailedError("actor/1", signal=9, host="h", log_tail="x"),
    errors.EngineCallError("actor/1", "step", "builtins.ValueError", "bad", "Traceback"),
    errors.ProtocolError("broken", seen=b"\x00", limit=5),
    errors.EncodeError("a.b", "function", "hint"),
    errors.ShardNotFoundError(["a", "b"], owner="w"),
]


@pytest.mark.parametrize("exc", OWN, ids=lambda e: type(e).__name__)
def test_our_own_errors_arrive_with_their_facts(exc: errors.RolecallError) -> None:
    """Every error of rolecall arrives with its type, its message and its attributes."""
    got = sent(raised(exc))
    assert type(got) is type(exc) and got.facts == exc.facts and str(got) == str(exc)
    assert {k: v for k, v in vars(got).items() if k != "remote_traceback"} == vars(exc)


def test_a_fact_that_cannot_travel_becomes_its_repr() -> None:
    """An error that holds something not serializable still arrives, with the repr of that thing."""
    got = sent(errors.WorkerConfigurationError("bad option", threading.Lock()))
    assert type(got) is errors.WorkerConfigurationError and "lock" in got.seen


# --- refusals ---


def function() -> None:
    """Something that does not travel."""


CYCLE: list[Any] = [1]
CYCLE.append({"again": (CYCLE,)})
DEEP: list[Any] = []
for _ in range(100):
    DEEP = [DEEP]


@dataclasses.dataclass
class Loop:
    me: Any = None


LOOP = Loop()
LOOP.me = LOOP


@pytest.mark.parametrize(
    ("value", "place"),
    [
        (function, "args"),
        ([0, Config(inner=Config(fn=function))], "args[1].inner.fn"),
        ({"a": [1, (2, function)]}, "args['a'][1][1]"),
        ({(1, 2): function}, "args[(1, 2)]"),
        ({function: 1}, "args{<function function"),
        ({1, function}, "args{<function function"),
        (Spec(a=1, b=[function]), "args.b[0]"),
        (Model(a=1, b={"k": function}), "args.b['k']"),
        (Open.model_validate({"odd": function}), "args.odd"),
        (Point(1, function), "args.y"),
        (slice(0, function), "args.stop"),
        (collections.deque([0, function]), "args[1]"),
        (collections.OrderedDict(a=function), "args['a']"),
        ([2**70, "\ud800", [function]], "args[2][0]"),
        ([{"lock": threading.Lock()}], "args[0]['lock']"),
        ([iter([])], "args[0]"),
        ((int,), "args[0]"),
        ([collections.Counter("a")], "args[0]"),
        ([type("Local", (), {})()], "args[0]"),
        ([dataclasses.make_dataclass("Made", ["x"])(1)], "args[0]"),
        ([dt.datetime(2024, 1, 1, tzinfo=type("Odd", (dt.tzinfo,), {})())], "args[0]"),
        (CYCLE, "args[1]['again'][0]"),
        (LOOP, "args"),
        (DEEP, "args" + "[0]" * 64),
    ],
    ids=lambda v: v if isinstance(v, str) else type(v).__name__,
)
def test_what_does_not_travel_is_named_with_its_place(value: Any, place: str) -> None:
    """The error of a value that is not serializable names the place inside the value."""
    with pytest.raises(EncodeError) as caught:
        encode(value, "args")
    assert caught.value.place.startswith(place)
    assert caught.value.place == place or place.endswith("<function function")


def test_a_local_class_is_refused_with_the_reason() -> None:
    """A class that is not defined at the top of a module cannot be found by the receiver, and the error says so."""

    @dataclasses.dataclass
    class Local:
        x: int = 1

    with pytest.raises(EncodeError, match="top of a module"):
        encode(Local())


def test_the_hint_says_what_to_do() -> None:
    """Errors for common values that are not serializable, and for too large ones, name the remedy."""
    with pytest.raises(EncodeError, match="make it a plain dict"):
        encode(collections.Counter("a"))
    with pytest.raises(EncodeError, match="make it a list, or stream it"):
        encode(i for i in range(3))
    with pytest.raises(EncodeError, match=r"more than 65536 arrays.*; join them"):
        encode([bytes(5000)] * 65537)


# --- what is decoded ---


def forged(code: int, payload: Any) -> bytes:
    return msgspec.msgpack.encode(Writer().extension(code, payload))


@pytest.mark.parametrize(
    "name",
    [
        "os:system",
        "builtins:eval",
        "subprocess:Popen",
        "pathlib:Path",
        "logging:LogRecord",
        "builtins:dict",
        "antigravity:x",
        "pip.__main__:main",
        "__main__.os:system",
        f"{__name__}:function",
        f"{__name__}:json.JSONDecodeError",
        f"{__name__}:threading",
        f"{__name__}:Config.__init__",
        f"{__name__}:Color",
        "no_such_module:X",
        "a b:c",
        ":",
        "",
        "collections:OrderedDict",
        "test.support:x",
        "x" * 10_000 + ":y",
        "typing:NamedTuple",
        "dataclasses:Field",
    ],
)
def test_a_name_is_refused_unless_it_is_what_it_claims_to_be(name: str) -> None:
    """A forged type name that is no dataclass is refused, and no module is imported for it."""
    with pytest.raises(DecodeError):
        decode(forged(DATACLASS, [name, {}]))
    assert "antigravity" not in sys.modules


@pytest.mark.parametrize(
    "payload",
    [
        [f"{__name__}:Config", {"unknown": 1}],
        [f"{__name__}:Config", []],
        [f"{__name__}:Config"],
        5,
        [f"{__name__}:Config", {}, {"__class__": 1}],
        [f"{__name__}:Counted", {}, {"__post_init__": 1}],
        [None, {}],
    ],
)
def test_a_state_that_does_not_fit_the_type_is_refused(payload: Any) -> None:
    """Forged fields that a dataclass does not have are refused."""
    with pytest.raises(DecodeError):
        decode(forged(DATACLASS, payload))


def test_an_enum_member_must_exist() -> None:
    """A forged enum member that the enum does not have is refused."""
    for member in ("GREEN", 5, None, "mro"):
        with pytest.raises(DecodeError):
            decode(forged(ENUM, [f"{__name__}:Color", member]))


def test_types_of_the_program_are_found_in_main(tmp_path: Path) -> None:
    """A worker has the controller's script under `__main__`, whatever name it loaded it under."""
    script = tmp_path / "script.py"
    script.write_text("import dataclasses\n@dataclasses.dataclass\nclass Args:\n    x: int = 1\n")
    send = (
        "import runpy, sys, types, importlib.util as u\n"
        f"spec = u.spec_from_file_location('__rolecall_main__', {str(script)!r})\n"
        "m = u.module_from_spec(spec); sys.modules['__main__'] = m; spec.loader.exec_module(m)\n"
        "from rolecall.transport.codec import encode, decode\n"
        "header = encode(m.Args(5)).header\n"
        "assert b'__main__:Args' in header and b'rolecall_main' not in header\n"
        "assert decode(header).x == 5 and type(decode(header)) is m.Args\n"
    )
    subprocess.run([sys.executable, "-c", send], check=True, timeout=60)


def test_importing_the_codec_is_light() -> None:
    """The guard imports it and must not pay for torch; neither may a plain value."""
    code = (
        "import sys; from rolecall.transport.codec import encode, decode; decode(*encode({'a': (1, {2})}))\n"
        "assert not {'torch', 'numpy', 'pydantic', 'pickle'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


DTYPES = [torch.float32, torch.bfloat16, torch.float8_e4m3fn, torch.bool, torch.int64, torch.complex64]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_many_small_tensors_arrive_in_one_buffer(dtype: torch.dtype) -> None:
    """A list of small tensors of one dtype keeps every shape and every bit, also of scalars, empty ones and views."""
    whole = torch.randint(0, 2, (6, 4)).to(dtype)
    values = [*whole, whole.t(), whole[2:2], whole[0, 0], whole[::2, 1:3], torch.empty(0, 3).to(dtype)]
    header, buffers = encode(values)
    assert len(buffers) <= 1
    got = decode(header, [memoryview(bytearray(b)) for b in buffers])
    for before, after in zip(values, got, strict=True):
        assert after.dtype is dtype and after.shape == before.shape
        assert after.contiguous().flatten().view(torch.uint8).equal(before.contiguous().flatten().view(torch.uint8))
    got[0].zero_()
    assert got[1].view(torch.uint8).equal(values[1].view(torch.uint8)), "each has memory of its own"


@pytest.mark.parametrize(
    "odd",
    [
        torch.ones(3, dtype=torch.int32),
        torch.ones(3, requires_grad=True),
        torch.ones(3, device="meta"),
        torch.ones(3, 3).to_sparse(),
        torch.ones(1000),
        torch.nn.Parameter(torch.ones(2)),
        None,
    ],
    ids=str,
)
def test_an_odd_one_among_small_tensors_arrives_as_it_was(odd: Any) -> None:
    """One that cannot share the buffer is sent by itself, and so are its neighbours."""
    values = [torch.full((2,), float(i)) for i in range(10)]
    values[4] = odd
    got = sent(values)
    assert [type(x) for x in got] == [torch.Tensor if x is not None else type(None) for x in values]
    assert got[9].equal(values[9])
    if odd is not None:
        assert (got[4].dtype, got[4].shape, got[4].layout, got[4].device) == (
            odd.dtype,
            odd.shape,
            odd.layout,
            odd.device,
        )


@pytest.mark.parametrize(
    "content",
    [
        ["float32", [[2], [1]], b"\0" * 8],
        ["float32", [[1 << 62, 1 << 62]], b""],
        ["float32", [[-1], [2]], b"\0" * 4],
        ["float32", [2], b"\0" * 8],
        ["float32", 2, b"\0" * 8],
        ["qint8", [[4]], b"\0" * 4],
        ["float32", [[1]], 7],
    ],
    ids=str,
)
def test_forged_small_tensors_are_refused(content: Any) -> None:
    """Shapes that do not fit the bytes, and dtypes that are none, are refused before a tensor is made."""
    with pytest.raises(DecodeError):
        decode(forged(SMALL_TENSORS, content))


# --- extensions ---


@dataclasses.dataclass
class Handle:
    shape: tuple[int, ...]
    parts: Any = None


@pytest.fixture
def handles() -> Any:
    """Registers Handle as another layer would, for one test."""

    def pack(found: Sequence[Handle]) -> bytes:
        return msgspec.msgpack.encode([h.shape for h in found])

    def read(packed: bytes, context: Any) -> list[Any]:
        return [(context, shape) for shape in msgspec.msgpack.decode(packed)]

    extension(99, Handle, pack, read)
    yield
    del LISTED_TYPES[99], ENCODERS[Handle]


@pytest.mark.usefixtures("handles")
def test_an_extension_gets_its_value_and_the_context() -> None:
    """A registered type is decoded by its own function."""
    assert sent([Handle((2, 3)), Handle((4,))], context="here") == [("here", [2, 3]), ("here", [4])]


@dataclasses.dataclass
class Colour:
    name: str


class Deep(Colour):
    """Known only by its family."""


@pytest.fixture
def registered() -> Any:
    """Registers a family of types for one test."""
    register_type(98, Colour, lambda c: [c.name, Handle((2,))], lambda v: (v[0], v[1]), subclasses=True)
    yield
    for cls in (Colour, Deep):
        ENCODERS.pop(cls, None)
    del DECODERS[98], RESOLVERS[0]


@pytest.mark.usefixtures("handles", "registered")
def test_a_registered_type_is_sent_with_its_family_and_may_hold_references() -> None:
    """Its own rule comes before that of a dataclass; what it is made of is decoded like any value."""
    assert sent([Colour("red"), {"deep": Deep("blue")}], context="here")[0] == ("red", ("here", [2]))
    assert sent([Deep("blue")] * 9, context=1) == [("blue", (1, [2]))] * 9
    with pytest.raises(ValueError, match=r"taken by .*Colour"):
        register_type(98, Config, lambda v: v, lambda v: v)
    with pytest.raises(ValueError, match="1 to 127"):
        register_type(128, Config, lambda v: v, lambda v: v)


# --- a forged header does not get at memory ---


@pytest.mark.parametrize(
    "header",
    [
        forged(-40, ["|O", [1], False, b"\0" * 8]),
        forged(-40, ["<f4", [1 << 60], False, b""]),
        forged(-40, ["<f4", [-1], False, b"\0" * 4]),
        forged(-40, ["<f4", [3], False, b"\0" * 8]),
        forged(-40, [[["a"], ["|O"], [0], 8], [1], False, b"\0" * 8]),
        forged(-40, ["<f4,<f4", [1], False, b"\0" * 8]),
        forged(-41, ["|O8", b"\0" * 8]),
        forged(-50, ["float32", [3], 0]),
        forged(-50, ["float32", [1 << 40], b""]),
        forged(-50, ["qint8", [4], b"\0" * 4]),
        forged(-50, ["Tensor", [4], b"\0" * 4]),
        forged(-50, ["float32", [2, 2], b"\0" * 15]),
        forged(-51, ["float32", [1 << 40, 1 << 40]]),
        forged(-53, "Tensor"),
        forged(-54, "no such device"),
        forged(-99, None),
        forged(98, None),
        forged(SLICE, [1]),
        b"\xdd\xff\xff\xff\xff",
        b"\x91" * 100_000,
        b"\xc1",
        b"",
        b"\x01\x02",
        b"cos\nsystem\n(S'touch pwned'\ntR.",
    ],
    ids=lambda h: repr(h[:16]),
)
def test_a_forged_header_is_a_decode_error(header: bytes) -> None:
    """A header with wrong types, sizes or indices is refused with a short message."""
    with pytest.raises(DecodeError) as caught:
        decode(header, [])
    assert len(str(caught.value)) < 2000


def test_forged_sparse_indices_do_not_reach_beyond_the_tensor() -> None:
    """Indices outside a sparse tensor are refused before they are used."""
    good = encode(torch.tensor([[0.0, 1.0]]).to_sparse()).header
    index = (1).to_bytes(8, "little")
    assert good.count(index) >= 1
    with pytest.raises(DecodeError):
        decode(good.replace(index, (1 << 40).to_bytes(8, "little")))


def test_nesting_of_extensions_is_bounded() -> None:
    """A header nested too deeply is refused instead of exhausting the stack."""
    header: Any = 0
    for _ in range(500):
        header = Writer().extension(-2, [header])
    with pytest.raises(DecodeError, match="too deep"):
        decode(msgspec.msgpack.encode(header))
