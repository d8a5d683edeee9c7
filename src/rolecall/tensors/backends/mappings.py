"""A reader's mappings of segments, reused from one tensor to the next.

Faulting in the pages of a fresh mapping costs more than the copy that it saves (64 MiB: 5 ms, copied in 3), while
owners fill the same few segments again and again. So a mapping outlives its tensor, idle, and is used for the next
shard of its segment. Pages that were changed through the last tensor are dropped first.

The lock against reuse is held through an open file of its own, for as long as a tensor lives. An idle mapping therefore
keeps no segment from reuse; and where a forked child has the tensor too, the lock lasts until both have dropped it.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import stat
import threading
import weakref
from collections import OrderedDict, deque
from pathlib import Path
from typing import Any

from rolecall.tensors.shard import Where
from rolecall.transport.address import this_host

_NO_RESERVE = 0x4000  # MAP_NORESERVE, which `mmap` has from Python 3.13 on
_FAILED = ctypes.c_void_p(-1).value
_PAGE_MAP = Path("/proc/self/pagemap")
# A page's highest byte where it is not there, or still the file's: bits 7 to 5 say present, swapped, of a file.
_UNCHANGED = bytes(byte for byte in range(256) if byte >> 5 == 0 or byte >> 5 & 1)


_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


class Span:
    """A private (copy-on-write) mapping. Unmapped when the last view is collected.

    It is made through an open file of its own: a lock that `fd` holds must not last as long as the mapping.
    """

    def __init__(self, fd: int, size: int) -> None:
        access, flags = mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | _NO_RESERVE
        own = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
        address = _libc.mmap(None, size, access, flags, own, 0)
        os.close(own)
        if address == _FAILED:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        self.size = size
        self._address: int = address
        # Every tensor over it references this array, whose finalizer unmaps.
        self._bytes = (ctypes.c_ubyte * size).from_address(address)
        weakref.finalize(self._bytes, _libc.munmap, address, size).atexit = False
        _libc.madvise(address, size, mmap.MADV_HUGEPAGE)  # may fail: kernels without huge pages for files

    def view(self) -> memoryview:
        """Its bytes."""
        return memoryview(self._bytes).cast("B")

    def forget_changes(self) -> None:
        """Drops written pages, so that it shows the file again. No tensor may use it."""
        if self.changed():
            _libc.madvise(self._address, self.size, mmap.MADV_DONTNEED)

    def changed(self) -> bool:
        """Whether pages were written to; True also when the kernel does not tell."""
        pages = -(-self.size // mmap.PAGESIZE)
        try:
            with _PAGE_MAP.open("rb", buffering=0) as table:
                table.seek(self._address // mmap.PAGESIZE * 8)
                entries = bytearray(table.read(pages * 8))
        except OSError:
            return True
        if len(entries) != pages * 8:
            return True
        return bool(entries[7::8].translate(None, _UNCHANGED))


_IDLE = 64  # mappings; a process may have some tens of thousands


class MappedSegment:
    """A segment, mapped and locked against reuse until `close`, or until all users of `view()` are collected."""

    def __init__(self, mappings: Mappings, path: Path, inode: int, span: Span, fd: int) -> None:
        self.path, self.inode, self.span = path, inode, span
        self._mappings, self._fd = mappings, fd
        self.viewed = False

    def view(self) -> memoryview:
        """The segment's bytes for a tensor; when it is collected, `close` is called. Call once."""
        view, self.viewed = self.span.view(), True
        weakref.finalize(view, self.close).atexit = False
        return view

    def close(self) -> None:
        """May be called twice, also by a finalizer at any point: it takes no lock."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
            self._mappings.released.append(self)


class Mappings:
    """A reader's mappings.

    Args:
        budget: Bytes of idle mappings to keep. They may keep memory alive that its owner has released.
    """

    def __init__(self, budget: int) -> None:
        self.released: deque[MappedSegment] = deque()
        self._budget = budget
        self._lock = threading.Lock()
        self._idle: OrderedDict[int, MappedSegment] = OrderedDict()  # by inode, oldest first
        self._in_use = 0
        self.reused = 0

    def __len__(self) -> int:
        """Number of mappings in use."""
        with self._lock:
            self._reclaim()
            return self._in_use

    def metrics(self) -> dict[str, int]:
        with self._lock:
            self._reclaim()
            return {"mappings": self._in_use, "idle_mappings": len(self._idle), "remapped": self.reused}

    def map(self, where: Where) -> MappedSegment | None:
        """Maps the segment at that place; None when this process cannot reach it."""
        pid, number, inode = where.get("pid"), where.get("fd"), where.get("inode")
        if where.get("host") != this_host() or not all(type(n) is int and n >= 0 for n in (pid, number, inode)):
            return None
        path = Path(f"/proc/{pid}/fd/{number}")
        fd = _lock_segment(path, inode)
        if fd is None:
            return None
        try:
            made = MappedSegment(self, path, os.fstat(fd).st_ino, self._span(fd), fd)
        except BaseException as e:
            os.close(fd)
            if isinstance(e, OSError):  # no descriptor or no address space is left
                return None
            raise
        with self._lock:
            self._in_use += 1
        return made

    def _span(self, fd: int) -> Span:
        status = os.fstat(fd)
        with self._lock:
            self._reclaim()
            idle = self._idle.pop(status.st_ino, None)
            if idle is None:
                for inode in [inode for inode, hold in self._idle.items() if not _exists(hold.path, inode)]:
                    del self._idle[inode]
            else:
                self.reused += 1
        if idle is None or idle.span.size != status.st_size:
            return Span(fd, status.st_size)
        idle.span.forget_changes()
        return idle.span

    def _reclaim(self) -> None:
        """Makes released mappings idle, within the budget."""
        while self.released:
            hold = self.released.popleft()
            self._in_use -= 1
            self._idle[hold.inode] = hold
        while len(self._idle) > _IDLE or sum(hold.span.size for hold in self._idle.values()) > self._budget:
            self._idle.popitem(last=False)

    def close(self) -> None:
        """Drops all idle mappings; held ones end with their tensors."""
        with self._lock:
            self._reclaim()
            self._idle.clear()


def _lock_segment(path: Path, inode: Any) -> int | None:
    """A descriptor that holds the segment's shared lock; None when there is no such segment or its lock is taken."""
    if not _exists(path, inode):  # checked first: opening another process's pipe could disturb it
        return None
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:  # the owner is gone, is another user's, or hides its descriptors
        return None
    try:
        if _is_segment(os.fstat(fd), inode) and fcntl.fcntl(fd, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return fd
    except OSError:  # the owner is testing the lock, or the file has no seals
        pass
    os.close(fd)
    return None


def _exists(path: Path, inode: Any) -> bool:
    try:
        return _is_segment(path.stat(), inode)
    except OSError:
        return False


def _is_segment(status: os.stat_result, inode: Any) -> bool:
    return stat.S_ISREG(status.st_mode) and status.st_ino == inode and status.st_nlink == 0
