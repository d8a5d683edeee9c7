"""What frames promise: every byte arrives once, in its final memory, and nothing is believed before it is checked."""

from __future__ import annotations

import random
import socket
import struct
import tracemalloc
from ctypes import addressof, c_char
from pathlib import Path

import pytest

from rolecall.errors import ProtocolError
from rolecall.transport.frames import MAGIC, Frame, FrameReader, Limits, allocate, pack, sizes_of
from rolecall.transport.handshake import LIMITS as BEFORE_HELLO

PREFIX = struct.Struct("!4sIIQ")


def feed(reader: FrameReader, data: bytes, sizes: random.Random | None = None) -> list[tuple[bytes, list[bytes]]]:
    """Gives `data` to the reader as a socket would, in pieces of random size where `sizes` is given."""
    got, rest = [], memoryview(data)
    while len(rest):
        target = reader.get_buffer(65536)
        n = min(len(target), len(rest), sizes.choice([1, 7, 100, 5000, 65536, 1 << 24]) if sizes else len(rest))
        target[:n] = rest[:n]
        rest = rest[n:]
        got += [(bytes(header), [bytes(b) for b in buffers]) for header, buffers in reader.buffer_updated(n)]
    return got


def wire(header: bytes, *buffers: bytes) -> bytes:
    return b"".join(pack(header, buffers))


@pytest.mark.parametrize("seed", range(5))
def test_frames_arrive_whole_and_in_order_however_the_stream_is_cut(seed: int) -> None:
    """Frames of all sizes come out equal and in order from a stream delivered in random pieces."""
    rng = random.Random(seed)
    sent = [
        (
            rng.randbytes(rng.choice([0, 1, 50, 300, 70_000])),
            [
                rng.randbytes(rng.choice([0, 1, 63, 64, 40_000, 200_000, 2 << 20]))
                for _ in range(rng.choice([0, 0, 1, 5]))
            ],
        )
        for _ in range(60)
    ]
    stream = b"".join(wire(header, *buffers) for header, buffers in sent)
    assert feed(FrameReader(), stream, rng) == sent


@pytest.mark.parametrize("sizes", [[1, 3, 0, 65, 100], [40_000, 70_000], [2 << 20, 5, 5 << 20]])
def test_buffers_are_writable_aligned_and_never_overwritten(sizes: list[int]) -> None:
    """A tensor may view a buffer for as long as it likes, whatever comes over the connection next."""
    reader = FrameReader()
    target, data, kept = reader.get_buffer(), memoryview(wire(b"h", *(b"x" * size for size in sizes))), []
    while len(data):
        target = reader.get_buffer()
        n = min(len(target), len(data))
        target[:n] = data[:n]
        data = data[n:]
        kept += reader.buffer_updated(n)
    feed(reader, wire(b"other", b"y" * 50_000) * 5)
    [(_, buffers)] = kept
    for size, buffer in zip(sizes, buffers, strict=True):
        assert bytes(buffer) == b"x" * size and not buffer.readonly
        assert not size or addressof(c_char.from_buffer(buffer)) % 64 == 0


def test_a_large_buffer_is_received_straight_into_its_memory() -> None:
    """A large buffer is read from the socket into its final memory without a copy."""
    reader, size = FrameReader(), 8 << 20
    start = PREFIX.pack(MAGIC, 4, 1, size) + struct.pack("!Q", size) + b"head"
    reader.get_buffer()[: len(start)] = start
    assert reader.buffer_updated(len(start)) == []
    target = reader.get_buffer()
    assert len(target) == size
    target[:3] = b"abc"
    assert reader.buffer_updated(3) == [] and len(reader.get_buffer()) == size - 3
    [(_, [buffer])] = reader.buffer_updated(size - 3)
    target[3:6] = b"def"
    assert bytes(buffer[:6]) == b"abcdef", "the buffer is the memory that was filled"


def test_many_small_frames_come_out_of_one_read() -> None:
    """One read that holds a thousand frames yields all of them in order."""
    frames = [b"%d" % i for i in range(1000)]
    stream = b"".join(wire(f) for f in frames)
    reader = FrameReader()
    reader.get_buffer()[: len(stream)] = stream
    assert [header for header, _ in reader.buffer_updated(len(stream))] == frames


def test_large_buffers_are_not_copied_when_packed() -> None:
    """A packed frame refers to a large buffer's own memory; a small frame is a single write."""
    tensor = bytearray(1 << 20)
    parts = pack(b"h", [memoryview(tensor), memoryview(b"small")])
    assert len(parts) == 3
    tensor[0] = 7
    assert parts[1][0] == 7
    assert pack(b"h") == [wire(b"h")], "a small frame is one write"


@pytest.mark.parametrize(
    ("prefix", "what"),
    [
        (PREFIX.pack(b"GET ", 1, 0, 0), "not a frame"),
        (PREFIX.pack(MAGIC, (64 << 20) + 1, 0, 0), "header"),
        (PREFIX.pack(MAGIC, 1, 65537, 0), "too many buffers"),
        (PREFIX.pack(MAGIC, 1, 1, 1 << 60), "too large"),
        (PREFIX.pack(MAGIC, 1, 0, 5), "without buffers"),
        (PREFIX.pack(MAGIC, 0, 2, 10) + struct.pack("!QQ", 5, 6) + bytes(10), "add up"),
        (PREFIX.pack(MAGIC, 0, 2, 1 << 30) + struct.pack("!QQ", 1 << 29, 1 << 63), "add up"),
    ],
)
def test_a_lying_prefix_is_refused_before_memory_is_taken_for_it(prefix: bytes, what: str) -> None:
    """A prefix that claims too much, or is none, is refused before its memory is allocated."""
    reader = FrameReader()
    reader.get_buffer()[: len(prefix)] = prefix
    tracemalloc.start()
    try:
        with pytest.raises(ProtocolError, match=what):
            reader.buffer_updated(len(prefix))
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


def test_a_claimed_gibibyte_costs_nothing_until_its_bytes_come() -> None:
    """Memory for a large buffer is mapped: a peer that announces 4 GiB and sends nothing has not taken any."""
    before = _resident()
    readers = []
    for _ in range(4):
        size = 1 << 30
        start = PREFIX.pack(MAGIC, 1, 1, size) + struct.pack("!Q", size) + b"h"
        reader = FrameReader()
        reader.get_buffer()[: len(start)] = start
        reader.buffer_updated(len(start))
        readers.append(reader)
    assert len(readers[0].get_buffer()) == 1 << 30
    assert _resident() - before < 64 << 20


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def test_memory_that_the_system_does_not_have_is_a_protocol_error() -> None:
    """A buffer for which there is no memory fails as a protocol error, not as a MemoryError."""
    with pytest.raises(ProtocolError, match="no memory"):
        allocate(1 << 62)


def test_before_the_hello_only_one_small_frame_is_taken() -> None:
    """A peer that has not introduced itself may send a small frame without buffers, and no other."""
    assert sizes_of(wire(b"x" * 4096), 0, BEFORE_HELLO) == (4096, 0, 0)
    for refused in (wire(b"x" * 4097), wire(b"", b"b"), wire(b"", b"")):
        with pytest.raises(ProtocolError):
            sizes_of(refused, 0, BEFORE_HELLO)


def test_pack_refuses_what_the_other_side_would_refuse() -> None:
    """Limits on headers and buffers hold for the sender as well."""
    with pytest.raises(ProtocolError, match="header"):
        pack(bytes(11), limits=Limits(max_header=10))
    with pytest.raises(ProtocolError, match="too many"):
        pack(b"", [b"a", b"b"], limits=Limits(max_buffers=1))


def test_frames_cross_a_real_socket() -> None:
    """A frame with a large and a small buffer arrives over a socket pair."""
    left, right = socket.socketpair()
    with left, right:
        payload = random.Random(0).randbytes(100_000)
        parts = pack(b"head", [payload, b"tail"])
        left.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        left.sendmsg(parts)
        reader = FrameReader()
        frames: list[Frame] = []
        while not frames:
            frames = reader.buffer_updated(right.recv_into(reader.get_buffer()))
    assert [(bytes(h), [bytes(b) for b in bs]) for h, bs in frames] == [(b"head", [payload, b"tail"])]
