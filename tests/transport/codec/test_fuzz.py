"""Hostile bytes: whatever comes over a connection ends in a value or in our own error, within bounded memory."""

from __future__ import annotations

import datetime as dt
import pickle
import random
import struct
import tracemalloc
from collections.abc import Iterator
from contextlib import suppress
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rolecall import errors
from rolecall.errors import CodecError, ProtocolError
from rolecall.transport.codec import decode, encode
from rolecall.transport.codec.reader import DECODERS
from rolecall.transport.frames import MAGIC, FrameReader, pack
from rolecall.types import SchedulingSpec, Worker

SETTINGS = settings(
    derandomize=True, deadline=None, max_examples=300, database=None, suppress_health_check=list(HealthCheck)
)
MOST = 32 << 20  # bytes that decoding a small input may take at its peak

pytestmark = pytest.mark.filterwarnings("ignore")  # torch warns of odd but valid dtypes

VALUES: list[Any] = [
    {"method": "f", "args": (1, 2.0, "x", [None, b"b", {3, 4}]), "kwargs": {"k": range(5)}},
    [np.arange(6.0).reshape(2, 3), np.float16(2), np.zeros(2, dtype=[("a", "i4"), ("b", "M8[s]")])],
    [torch.ones(2, 3).bfloat16(), torch.ones(2, 2).to_sparse(), torch.ones(3, device="meta"), torch.Size([2])],
    [torch.eye(3).to_sparse(layout=torch.sparse_csr), torch.device("cpu"), torch.float8_e4m3fn],
    [Worker("actor/0", "10.0.0.1", ["1"]), SchedulingSpec(env_vars={"A": "b"}), Path("/x"), Decimal("1.5")],
    [ValueError("a", 1), errors.WorkerNotFoundError("a", ["b"]), OSError(2, "x"), ExceptionGroup("g", [KeyError(1)])],
    [dt.datetime(2024, 1, 1, tzinfo=dt.UTC), dt.timedelta(3), 2**100, "\ud800", 1j, {(1, 2): frozenset({3})}],
    [memoryview(b"view"), bytearray(b"xy"), ..., slice(1, 2)],
]
ENCODED = [encode(value) for value in VALUES]
FRAMES = [b"".join(pack(*encoded)) for encoded in ENCODED]


@pytest.fixture(autouse=True)
def bounded_memory() -> Iterator[None]:
    tracemalloc.start()
    yield
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < MOST + (64 << 20), "hypothesis itself takes some"


def tame(header: Any, buffers: Any = ()) -> None:
    """Decodes; lets nothing out but a value or our error, and no more memory than `MOST` be taken for it."""
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    with suppress(CodecError, ProtocolError):
        decode(header, buffers)
    assert tracemalloc.get_traced_memory()[1] - before < MOST


def receive(data: bytes) -> None:
    reader, rest = FrameReader(), memoryview(data)
    try:
        while len(rest):
            target = reader.get_buffer()
            n = min(len(target), len(rest))
            target[:n] = rest[:n]
            rest = rest[n:]
            for header, buffers in reader.buffer_updated(n):
                tame(header, buffers)
    except ProtocolError:
        pass


@pytest.mark.slow("thousands of examples")
@SETTINGS
@given(st.binary(max_size=300))
def test_random_bytes_as_a_header(data: bytes) -> None:
    """Random bytes as a header are refused by a typed error or decode to a value, in bounded memory."""
    tame(data, [memoryview(bytearray(64))])


@SETTINGS
@given(st.binary(max_size=300))
def test_random_bytes_on_a_connection(data: bytes) -> None:
    """Random bytes as a stream of frames are refused by a typed error."""
    receive(data)
    receive(MAGIC + data)


@pytest.mark.slow("thousands of examples")
@SETTINGS
@given(st.integers(0, 1 << 32), st.integers(0, 1 << 32), st.integers(0, 1 << 63), st.binary(max_size=200))
def test_random_prefixes(header: int, count: int, total: int, data: bytes) -> None:
    """Random lengths in a frame's prefix are refused or waited for, without memory being taken for them."""
    receive(struct.pack("!4sIIQ", MAGIC, header % (1 << 32), count % (1 << 32), total) + data)
    receive(struct.pack("!4sIIQ", MAGIC, header % 100, count % 4, total % 200) + data)


@pytest.mark.slow("thousands of examples")
@SETTINGS
@given(st.sampled_from(range(len(FRAMES))), st.integers(0), st.integers(1, 8))
def test_mutated_frames(which: int, seed: int, changes: int) -> None:
    """Valid frames with some bytes changed are refused by a typed error or decode to a value."""
    rng, frame = random.Random(seed), bytearray(FRAMES[which])
    for _ in range(changes):
        frame[rng.randrange(len(frame))] = rng.choice([0, 1, 0x7F, 0x80, 0xC1, 0xDD, 0xFF, rng.randrange(256)])
    receive(bytes(frame))


@pytest.mark.slow("thousands of examples")
@SETTINGS
@given(st.sampled_from(range(len(ENCODED))), st.integers(0), st.integers(1, 4))
def test_mutated_headers_with_whole_buffers(which: int, seed: int, changes: int) -> None:
    """Valid headers with some bytes changed, beside intact buffers, are refused or decode to a value."""
    rng, header = random.Random(seed), bytearray(ENCODED[which].header)
    for _ in range(changes):
        header[rng.randrange(len(header))] = rng.randrange(256)
    tame(bytes(header), [memoryview(bytearray(b)) for b in ENCODED[which].buffers])


@pytest.mark.parametrize("which", range(len(FRAMES)))
def test_truncated_frames_and_headers(which: int) -> None:
    """Every cut of a frame waits for more; every cut of a header is refused."""
    for end in range(len(FRAMES[which])):
        receive(FRAMES[which][:end])
    header, buffers = ENCODED[which]
    for end in range(len(header)):
        with pytest.raises(CodecError):
            decode(header[:end], buffers)


LEAVES: list[Any] = [
    None,
    True,
    0,
    1,
    -1,
    3,
    64,
    1 << 40,
    (1 << 63) - 1,
    -(1 << 63),
    0.5,
    float("nan"),
    "",
    "a",
    b"",
    b"\0" * 8,
    b"\0" * 64,
    "<f4",
    "|O",
    "|O8",
    "|V0",
    "<U0",
    "<M8[s]",
    "float32",
    "bool",
    "qint8",
    "sparse_coo",
    "sparse_csr",
    "list",
    "Path",
    "B",
    "builtins:ValueError",
    "builtins:OSError",
    "rolecall.types:Worker",
    "rolecall.types:SchedulingSpec",
    "os:system",
    "rolecall.errors:PortAllocationError",
    "rolecall.errors:ShardNotFoundError",
    "http:HTTPStatus",
    "Europe/Berlin",
    "../x",
]


def odd(rng: random.Random, depth: int = 0) -> Any:
    """Plain content that an extension may be made to hold, of the kinds that the rules look for."""
    kind = rng.randrange(10)
    if depth > 3 or kind < 5:
        return rng.choice(LEAVES)
    if kind < 8:
        return [odd(rng, depth + 1) for _ in range(rng.randrange(7))]
    if kind < 9:
        return {rng.choice(["id", "ip", "cpu", "wanted", "x"]): odd(rng, depth + 1) for _ in range(rng.randrange(3))}
    return wrapped(rng.choice(sorted(DECODERS)), odd(rng, depth + 1))


def wrapped(code: int, content: Any) -> msgspec.msgpack.Ext:
    return msgspec.msgpack.Ext(code, msgspec.msgpack.encode(content))


@pytest.mark.slow("thousands of examples")
@SETTINGS
@given(st.integers(0))
def test_every_extension_with_wrong_content(seed: int) -> None:
    """Every extension code with content of a wrong form is refused by a typed error."""
    rng = random.Random(seed)
    for code in sorted(DECODERS):
        tame(msgspec.msgpack.encode(wrapped(code, odd(rng))), [memoryview(bytearray(64))])


class Canary:
    """Its pickle would write a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_a_pickle_is_never_loaded(tmp_path: Path) -> None:
    """A pickle of any protocol, wherever it is put, is never executed."""
    canary = tmp_path / "sang"
    shell = f"cos\nsystem\n(S'touch {canary}'\ntR.".encode()
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        for payload in (shell, pickle.dumps(Canary(canary), protocol)):
            receive(payload)
            receive(b"".join(pack(payload, [payload])))
            tame(payload, [payload])
            for code in DECODERS:
                for content in (payload, [payload], ["os:system", [f"touch {canary}"]], ["builtins:eval", payload]):
                    tame(msgspec.msgpack.encode(wrapped(code, content)), [payload])
    assert not canary.exists()
    pickle.loads(pickle.dumps(Canary(canary)))
    assert canary.exists(), "the canary sings when it is loaded"
