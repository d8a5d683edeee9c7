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
from collections.abc import Sequence
from ctypes import addressof, c_char
from dataclasses import dataclass
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

_MAP_FLAGS = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
_MADV_HUGEPAGE: int | None = getattr(mmap, "MADV_HUGEPAGE", None)


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
            return memoryview(_mapped(size))
        block = bytearray(size + _ALIGN - 1)
    except (OSError, MemoryError, ValueError, OverflowError) as e:
        raise ProtocolError("no memory for a buffer of this many bytes", size) from e
    start = -addressof(c_char.from_buffer(block)) % _ALIGN
    return memoryview(block)[start : start + size]


def _mapped(size: int) -> mmap.mmap:
    block = mmap.mmap(-1, size, flags=_MAP_FLAGS)
    if size >= _HUGE and _MADV_HUGEPAGE is not None:
        block.madvise(_MADV_HUGEPAGE)
    return block


def pack(header: bytes, buffers: Sequence[Buffer] = (), limits: Limits = DEFAULT_LIMITS) -> list[bytes | memoryview]:
    """Returns the parts of one frame, to be written in order. Large buffers are not copied.

    Raises:
        ProtocolError: The frame is larger than `limits`, so the other side would close the connection.
    """
    if not buffers:
        _check(len(header), 0, 0, limits)
        return [_PREFIX.pack(MAGIC, len(header), 0, 0) + header]
    views = [_flat(buffer) for buffer in buffers]
    sizes = [view.nbytes for view in views]
    total = sum(sizes)
    _check(len(header), len(sizes), total, limits)
    prefix = struct.pack(f"!4sIIQ{len(sizes)}Q", MAGIC, len(header), len(sizes), total, *sizes)
    return _joined([prefix, header, *views])


def _flat(buffer: Buffer) -> memoryview:
    view = memoryview(buffer)
    return view if view.ndim == 1 and view.format == "B" else view.cast("B")


def _joined(parts: list[bytes | memoryview]) -> list[bytes | memoryview]:
    out: list[bytes | memoryview] = []
    small: list[bytes | memoryview] = []
    for part in parts:
        if len(part) < _JOIN:
            small.append(part)
            continue
        if small:
            out.append(b"".join(small))
            small = []
        out.append(part)
    if small:
        out.append(b"".join(small))
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
        self._large: _LargeFrame | None = None
        self._direct = False  # the next bytes go to the memory of `_large`; then the scratch buffer is empty

    def get_buffer(self, sizehint: int = -1) -> memoryview:
        """Where the next bytes belong. Never empty."""
        if self._direct:
            assert self._large is not None
            return self._large.rest()
        return self._scratch[self._end :] if self._end else self._scratch

    def buffer_updated(self, n: int) -> list[Frame]:
        """Takes note of `n` bytes in the last `get_buffer()` and returns the frames they complete, in order.

        Raises:
            ProtocolError: The bytes are no frame, or one that is over the limits.
        """
        frames: list[Frame] = []
        if self._direct:
            assert self._large is not None
            self._large.advance(n)
            self._settle(frames)
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
            if self._large is not None:
                start += self._large.take(scratch[start:end])
                self._settle(frames)
                if self._large is not None:
                    return start
            if end - start < PREFIX_SIZE:
                return start
            header, count, total = sizes_of(scratch, start)
            body = start + PREFIX_SIZE
            stop = body + 8 * count + header + total
            if stop - start > _SCRATCH:
                self._large = _LargeFrame(header, count, total)
                start = body
            elif stop > end:
                return start
            else:
                if count:
                    frames.append(_small_frame(scratch, body, header, count, total))
                else:
                    frames.append((scratch[body:stop].tobytes(), []))
                start = stop

    def _settle(self, frames: list[Frame]) -> None:
        large = self._large
        assert large is not None
        if large.done:
            frames.append(large.frame())
            self._large, self._direct = None, False
        else:
            self._direct = large.missing() >= _DIRECT

    def _compact(self, start: int, end: int) -> None:
        left = end - start
        if start and left:
            self._scratch[:left] = self._scratch[start:end]
        self._end = left


def _small_frame(scratch: memoryview, body: int, header: int, count: int, total: int) -> Frame:
    sizes = struct.unpack_from(f"!{count}Q", scratch, body)
    if sum(sizes) != total:
        raise ProtocolError("lengths of buffers do not add up to the frame's", sum(sizes), total)
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


class _LargeFrame:
    """A frame that does not fit the scratch buffer: its parts (lengths with header, then buffers) are filled in turn.

    Memory for a part is taken when the part before it is complete.
    """

    def __init__(self, header: int, count: int, total: int) -> None:
        self._count, self._total = count, total
        self._lengths: list[int] = []
        self._buffers: list[memoryview] = []
        self._head: memoryview | None = None
        self._sink = allocate(8 * count + header)
        self._filled = 0
        self.done = False

    def missing(self) -> int:
        return len(self._sink) - self._filled

    def rest(self) -> memoryview:
        return self._sink[self._filled :] if self._filled else self._sink

    def frame(self) -> Frame:
        assert self._head is not None
        return self._head, self._buffers

    def take(self, data: memoryview) -> int:
        """Copies from `data` until it or the frame ends; returns how many bytes it took."""
        used = 0
        while not self.done and used < len(data):
            n = min(self.missing(), len(data) - used)
            self._sink[self._filled : self._filled + n] = data[used : used + n]
            used += n
            self.advance(n)
        return used

    def advance(self, n: int) -> None:
        self._filled += n
        while self._filled == len(self._sink) and not self.done:
            self._part_complete()

    def _part_complete(self) -> None:
        if self._head is None:
            self._head = self._read_lengths()
        else:
            self._buffers.append(self._sink)
        if len(self._buffers) == self._count:
            self.done = True
            return
        self._sink = allocate(self._lengths[len(self._buffers)])
        self._filled = 0

    def _read_lengths(self) -> memoryview:
        size = 8 * self._count
        self._lengths = list(struct.unpack_from(f"!{self._count}Q", self._sink))
        if sum(self._lengths) != self._total:
            raise ProtocolError("lengths of buffers do not add up to the frame's", sum(self._lengths), self._total)
        return self._sink[size:]
