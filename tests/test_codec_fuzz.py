"""Hostile bytes: whatever comes over a connection ends in a value or in our own error, within bounded memory."""

from __future__ import annotations

import datetime as dt
import pickle
import random
import struct
import tracemalloc
from collections.abc import Iterator
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
from rolecall.rpc.codec import decode, encode
from rolecall.rpc.frames import MAGIC, FrameReader, pack
from rolecall.rpc.walk import DECODERS
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
    try:
        decode(header, buffers)
    except (CodecError, ProtocolError):
        pass
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


@SETTINGS
@given(st.binary(max_size=300))
def test_random_bytes_as_a_header(data: bytes) -> None:
    tame(data, [memoryview(bytearray(64))])


@SETTINGS
@given(st.binary(max_size=300))
def test_random_bytes_on_a_connection(data: bytes) -> None:
    receive(data)
    receive(MAGIC + data)


@SETTINGS
@given(st.integers(0, 1 << 32), st.integers(0, 1 << 32), st.integers(0, 1 << 63), st.binary(max_size=200))
def test_random_prefixes(header: int, count: int, total: int, data: bytes) -> None:
    receive(struct.pack("!4sIIQ", MAGIC, header % (1 << 32), count % (1 << 32), total) + data)
    receive(struct.pack("!4sIIQ", MAGIC, header % 100, count % 4, total % 200) + data)


@SETTINGS
@given(st.sampled_from(range(len(FRAMES))), st.integers(0), st.integers(1, 8))
def test_mutated_frames(which: int, seed: int, changes: int) -> None:
    rng, frame = random.Random(seed), bytearray(FRAMES[which])
    for _ in range(changes):
        frame[rng.randrange(len(frame))] = rng.choice([0, 1, 0x7F, 0x80, 0xC1, 0xDD, 0xFF, rng.randrange(256)])
    receive(bytes(frame))


@SETTINGS
@given(st.sampled_from(range(len(ENCODED))), st.integers(0), st.integers(1, 4))
def test_mutated_headers_with_whole_buffers(which: int, seed: int, changes: int) -> None:
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


ODD = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 64) - 1)
    | st.floats()
    | st.text(max_size=8)
    | st.binary(max_size=16)
    | st.sampled_from(["<f4", "|O", "float32", "sparse_coo", "builtins:ValueError", "rolecall.types:Worker", "list"])
    | st.sampled_from(
        [str(name) for name in ("rolecall.errors:PortAllocationError", "os:system", "qint8", "|V0", "<U0")]
    ),
    lambda inner: (
        st.lists(inner, max_size=6)
        | st.dictionaries(st.text(max_size=4), inner, max_size=3)
        | st.builds(
            lambda code, content: msgspec.msgpack.Ext(code, msgspec.msgpack.encode(content)),
            st.sampled_from(sorted(DECODERS)),
            inner,
        )
    ),
    max_leaves=12,
)


@settings(SETTINGS, max_examples=2000)
@given(st.sampled_from(sorted(DECODERS)), st.lists(ODD, max_size=6) | ODD)
def test_every_extension_with_wrong_content(code: int, content: Any) -> None:
    extension = msgspec.msgpack.Ext(code, msgspec.msgpack.encode(content))
    tame(msgspec.msgpack.encode(extension), [memoryview(bytearray(64))])


class Canary:
    """Its pickle would write a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_a_pickle_is_never_loaded(tmp_path: Path) -> None:
    canary = tmp_path / "sang"
    shell = f"cos\nsystem\n(S'touch {canary}'\ntR.".encode()
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        for payload in (shell, pickle.dumps(Canary(canary), protocol)):
            receive(payload)
            receive(b"".join(pack(payload, [payload])))
            tame(payload, [payload])
            for code in DECODERS:
                for content in (payload, [payload], ["os:system", [f"touch {canary}"]], ["builtins:eval", payload]):
                    extension = msgspec.msgpack.Ext(code, msgspec.msgpack.encode(content))
                    tame(msgspec.msgpack.encode(extension), [payload])
    assert not canary.exists()
    pickle.loads(pickle.dumps(Canary(canary)))
    assert canary.exists(), "the canary sings when it is loaded"
