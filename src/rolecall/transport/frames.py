"""The frame: how a header and its raw buffers lie on a byte stream. It never looks into the header.

    !4sIIQ                 magic `RC01`, header length, number of buffers, total bytes of the buffers
    number of buffers x Q  length of each buffer
    header                 what the codec wrote
    buffers                back to back

`pack` makes the parts to write, `FrameReader` takes bytes in as they come. The reader has no socket and no loop: it
says where the next bytes belong (`get_buffer`) and is told how many came (`buffer_updated`), which is the interface of
`asyncio.BufferedProtocol`. Small frames are read many at a time into one scratch buffer; a large buffer is received
straight into the memory that its tensor will have.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Generator, Sequence
from ctypes import addressof, c_char
from dataclasses import dataclass
from itertools import groupby
from typing import TypeAlias

from rolecall.errors import ProtocolError

MAGIC = b"RC01"
MAX_DEPTH = 64  # levels of nesting that a value may have

Buffer: TypeAlias = bytes | bytearray | memoryview
Frame: TypeAlias = tuple[bytes | memoryview, list[memoryview]]

_KIB, _MIB, _GIB = 1 << 10, 1 << 20, 1 << 30
_PREFIX = struct.Struct("!4sIIQ")
PREFIX_SIZE = _PREFIX.size
_ALIGN = 64
_SCRATCH = 64 * _KIB
_DIRECT = 32 * _KIB  # below this a copy out of the scratch buffer is cheaper than a read of its own
_MAPPED = 1 * _MIB  # from here on memory is mapped: the kernel gives a page when its bytes arrive, not before
_HUGE = 4 * _MIB  # huge pages save most of the page faults, but round up to 2 MiB
_JOIN = 8 * _KIB  # below this a copy is cheaper than one more part in the write


@dataclass(frozen=True)
class Limits:
    """What a connection accepts. Checked when a length is read, before memory is taken for it.

    Attributes:
        max_header: Bytes of a header.
        max_buffers: Buffers of one frame.
        max_payload: Bytes of all buffers of one frame.
    """

    max_header: int = 64 * _MIB
    max_buffers: int = 65536
    max_payload: int = 256 * _GIB


DEFAULT_LIMITS = Limits()


def allocate(size: int) -> memoryview:
    """Returns `size` bytes of writable memory that begins at a multiple of 64, so that arrays and tensors can view it.

    Raises:
        ProtocolError: The system does not give that much.
    """
    try:
        if size >= _MAPPED:
            mapped = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            if size >= _HUGE:
                mapped.madvise(mmap.MADV_HUGEPAGE)
            return memoryview(mapped)
        block = bytearray(size + _ALIGN - 1)
    except (OSError, MemoryError, ValueError, OverflowError) as e:
        raise ProtocolError("no memory for a buffer of this many bytes", size) from e
    start = -addressof(c_char.from_buffer(block)) % _ALIGN
    return memoryview(block)[start : start + size]


def pack(header: bytes, buffers: Sequence[Buffer] = (), limits: Limits = DEFAULT_LIMITS) -> list[bytes | memoryview]:
    """Returns the parts of one frame, to be written in order. Large buffers are not copied.

    Raises:
        ProtocolError: The frame is larger than `limits`, so the other side would close the connection.
    """
    if not buffers:
        if len(header) > limits.max_header:
            _check(len(header), 0, 0, limits)
        return [_PREFIX.pack(MAGIC, len(header), 0, 0) + header]
    views = [memoryview(buffer).cast("B") for buffer in buffers]
    sizes = [view.nbytes for view in views]
    total = sum(sizes)
    _check(len(header), len(sizes), total, limits)
    prefix = struct.pack(f"!4sIIQ{len(sizes)}Q", MAGIC, len(header), len(sizes), total, *sizes)
    return _joined([prefix, header, *views])


def _joined(parts: list[bytes | memoryview]) -> list[bytes | memoryview]:
    out: list[bytes | memoryview] = []
    for small, run in groupby(parts, lambda part: len(part) < _JOIN):
        if small:
            out.append(b"".join(run))
        else:
            out += run
    return out


def _check(header: int, count: int, total: int, limits: Limits) -> None:
    if header > limits.max_header:
        raise ProtocolError("header of a frame too large", header, limits.max_header)
    if count > limits.max_buffers:
        raise ProtocolError("too many buffers in a frame", count, limits.max_buffers)
    if total > limits.max_payload:
        raise ProtocolError("buffers of a frame too large", total, limits.max_payload)
    if total and not count:
        raise ProtocolError("a frame with bytes but without buffers", total)


def sizes_of(data: bytes | memoryview, start: int, limits: Limits = DEFAULT_LIMITS) -> tuple[int, int, int]:
    """Length of the header, number of buffers and their bytes, of the frame whose prefix begins at `data[start]`.

    Raises:
        ProtocolError: The bytes are no frame, or one that is over the limits.
    """
    magic, header, count, total = _PREFIX.unpack_from(data, start)
    if magic != MAGIC:
        raise ProtocolError("not a frame of ours, it begins with", magic)
    if count or total or header > limits.max_header:
        _check(header, count, total, limits)
    return header, count, total


class FrameReader:
    """Turns bytes into frames, for one connection. After a `ProtocolError` it is of no further use.

    A frame is `(header, buffers)`. Both are the receiver's own memory: nothing is overwritten later, and the buffers
    are writable. Small buffers of one small frame share one allocation; every other buffer has its own.
    """

    def __init__(self) -> None:
        self._scratch = memoryview(bytearray(_SCRATCH))
        self._end = 0  # bytes in the scratch buffer that are not yet consumed; they lie at its beginning
        self._parts: Generator[memoryview, None, Frame] | None = None  # of a frame that does not fit the scratch buffer
        self._sink = memoryview(b"")  # where the next bytes of that frame belong
        self._direct = False  # they go there without a copy; then the scratch buffer is empty

    def get_buffer(self, sizehint: int = -1) -> memoryview:
        """Where the next bytes belong. Never empty."""
        if self._direct:
            return self._sink
        return self._scratch[self._end :] if self._end else self._scratch

    def buffer_updated(self, n: int) -> list[Frame]:
        """Takes note of `n` bytes in the last `get_buffer()` and returns the frames they complete, in order.

        Raises:
            ProtocolError: The bytes are no frame, or one that is over the limits.
        """
        frames: list[Frame] = []
        if self._direct:
            self._advance(n, frames)
            return frames
        end, start = self._end + n, 0
        try:
            start = self._consume(end, frames)
        finally:
            self._compact(start, end)
        return frames

    def _consume(self, end: int, frames: list[Frame]) -> int:
        """Takes frames out of the scratch buffer's first `end` bytes and returns where it stopped."""
        start, scratch = 0, self._scratch
        while True:
            while self._parts is not None:
                if start == end:
                    return start
                n = min(len(self._sink), end - start)
                self._sink[:n] = scratch[start : start + n]
                start += n
                self._advance(n, frames)
            if end - start < PREFIX_SIZE:
                return start
            header, count, total = sizes_of(scratch, start)
            body = start + PREFIX_SIZE
            stop = body + 8 * count + header + total
            if stop - start > _SCRATCH:
                self._parts = _large_frame(header, count, total)
                self._advance(0, frames)
                start = body
            elif stop > end:
                return start
            else:
                if count:
                    frames.append(_small_frame(scratch, body, header, count, total))
                else:
                    frames.append((scratch[body:stop].tobytes(), []))
                start = stop

    def _advance(self, n: int, frames: list[Frame]) -> None:
        """Takes note of `n` bytes in the sink; goes on to the frame's next part where that was the rest of it."""
        assert self._parts is not None
        self._sink = self._sink[n:]
        try:
            while not self._sink:
                self._sink = next(self._parts)
            self._direct = len(self._sink) >= _DIRECT
        except StopIteration as complete:
            frames.append(complete.value)
            self._parts, self._direct = None, False

    def _compact(self, start: int, end: int) -> None:
        left = end - start
        if start and left:
            self._scratch[:left] = self._scratch[start:end]
        self._end = left


def _small_frame(scratch: memoryview, body: int, header: int, count: int, total: int) -> Frame:
    sizes = _lengths(scratch, body, count, total)
    body += 8 * count
    source = body + header
    head = scratch[body:source].tobytes()
    memory = allocate(sum(-(-size // _ALIGN) for size in sizes) * _ALIGN)
    buffers, at = [], 0
    for size in sizes:
        view = memory[at : at + size]
        view[:] = scratch[source : source + size]
        buffers.append(view)
        source += size
        at += -(-size // _ALIGN) * _ALIGN
    return head, buffers


def _large_frame(header: int, count: int, total: int) -> Generator[memoryview, None, Frame]:
    """Yields the memory that is to be filled, part by part (lengths with header, then buffers); returns the frame.

    Memory for a part is taken when the part before it is complete.
    """
    head = allocate(8 * count + header)
    yield head
    buffers = []
    for size in _lengths(head, 0, count, total):
        buffers.append(allocate(size))
        yield buffers[-1]
    return head[8 * count :], buffers


def _lengths(data: memoryview, start: int, count: int, total: int) -> tuple[int, ...]:
    sizes: tuple[int, ...] = struct.unpack_from(f"!{count}Q", data, start)
    if sum(sizes) != total:
        raise ProtocolError("lengths of buffers do not add up to the frame's", sum(sizes), total)
    return sizes
