"""Shared memory segments and the pool that reuses them.

A segment is an anonymous file in memory (memfd): nothing is named in /dev/shm, and the kernel frees it with its last
holder. Filling fresh pages costs several times the copy itself, so an owner reuses segments whose shards were freed.

Reuse is safe because every mapping of a segment, the owner's own reads included, holds a shared `flock` on an open file
of its own, which the kernel drops when the mapping's last holder ends, however it ends. A segment is reused only when
an exclusive lock shows that it has no reader. A reader that locks later finds that the bytes in front of the shard are
no longer its id (the owner wiped them before it tested the lock) and gives up.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import resource
import threading
from collections import OrderedDict

HEADER = 64  # bytes before each shard: its id, then padding so that the elements stay aligned for vector code
MIB = 1 << 20


class Segment:
    """One memfd of the owner, mapped for writing."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.fd = os.memfd_create("rolecall", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(self.fd, capacity)
            seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW  # reading past the end of a file that shrank raises SIGBUS
            fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, seals)
            self.memory = mmap.mmap(self.fd, capacity)
            if capacity >= 2 * MIB:
                with contextlib.suppress(OSError):  # a kernel that gives no huge pages to shared memory on advice
                    self.memory.madvise(mmap.MADV_HUGEPAGE)
            self.inode = os.fstat(self.fd).st_ino
        except BaseException:
            os.close(self.fd)
            raise

    def mark(self, offset: int, shard_id: str) -> None:
        """Writes the id in front of the shard whose elements begin at `offset`."""
        self.memory[offset - HEADER : offset - HEADER + 16] = bytes.fromhex(shard_id)

    def wipe(self, offset: int) -> None:
        """Overwrites the id, so that readers see that the shard was freed."""
        self.mark(offset, "00" * 16)

    def in_use(self) -> bool:
        """True while a reader, in any process, has it mapped."""
        try:
            fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        fcntl.flock(self.fd, fcntl.LOCK_UN)
        return False

    def close(self) -> None:
        """Unmaps it here. Readers keep their mappings; the memory is freed with the last one."""
        with contextlib.suppress(BufferError):  # a put is writing to it; it is unmapped after that
            self.memory.close()
        os.close(self.fd)


class Pool:
    """Segments for reuse.

    Args:
        budget: Bytes of idle segments to keep; the longest idle are closed first.
        limit: Number of segments, in use or not, beyond which `acquire` returns None.
    """

    def __init__(self, budget: int, limit: int) -> None:
        self._budget, self._limit = budget, limit
        self._lock = threading.Lock()
        self._idle: OrderedDict[int, Segment] = OrderedDict()  # by inode, oldest first; they may have readers
        self._used: dict[int, Segment] = {}
        self._reused = self._created = 0

    def acquire(self, nbytes: int) -> Segment | None:
        """A segment of at least `nbytes` without readers; None when the limit is reached."""
        capacity = size_class(nbytes)
        with self._lock:
            segment = self._reusable(capacity)
            if segment is not None:
                del self._idle[segment.inode]
                self._reused += 1
            else:
                self._shrink(self._budget, self._limit - len(self._used) - 1)
                if len(self._used) >= self._limit:
                    return None
                try:
                    segment = Segment(capacity)
                except OSError:  # no descriptor or address space is left: another backend may still take the tensor
                    return None
                self._created += 1
            self._used[segment.inode] = segment
            return segment

    def release(self, segment: Segment) -> None:
        """Makes a segment idle. All its shards are freed and wiped."""
        with self._lock:
            if self._used.pop(segment.inode, None) is None:
                return
            self._idle[segment.inode] = segment
            self._shrink(self._budget, self._limit)

    def _reusable(self, capacity: int) -> Segment | None:
        # Newest first: its pages are the likeliest to be in the processor's cache.
        fitting = [s for s in reversed(self._idle.values()) if capacity <= s.capacity <= 2 * capacity]
        return next((s for s in sorted(fitting, key=lambda s: s.capacity) if not s.in_use()), None)

    def _shrink(self, budget: int, count: int) -> None:
        while self._idle and (self._idle_bytes() > budget or len(self._idle) > count):
            self._idle.popitem(last=False)[1].close()

    def _idle_bytes(self) -> int:
        return sum(segment.capacity for segment in self._idle.values())

    def metrics(self) -> dict[str, int]:
        with self._lock:
            used = {"segments": len(self._used), "segment_bytes": sum(s.capacity for s in self._used.values())}
            idle = {"idle_segments": len(self._idle), "idle_bytes": self._idle_bytes()}
            return {**used, **idle, "reused": self._reused, "created": self._created}

    def close(self) -> None:
        with self._lock:
            self._shrink(-1, 0)
            for segment in self._used.values():
                segment.close()
            self._used.clear()


def size_class(nbytes: int) -> int:
    """The capacity for `nbytes`: at most a quarter more, so that tensors of similar sizes share segments."""
    step = max(mmap.PAGESIZE, 1 << max(0, nbytes.bit_length() - 3))
    return -(-nbytes // step) * step


def default_budget() -> int:
    """Idle bytes to keep: at most 4 GiB, and for eight workers of a host a quarter of its memory."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min(4 << 30, total // 32)


def default_limit() -> int:
    """Number of segments: each costs two descriptors, and all together may use a quarter of the process's limit."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(16, min(soft, 65536) // 8)
