"""A private mapping of a whole file, without a descriptor: `mmap.mmap` keeps one for as long as it lives."""

from __future__ import annotations

import ctypes
import mmap
import os
import weakref
from pathlib import Path

_NO_RESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000)
_HUGE = getattr(mmap, "MADV_HUGEPAGE", None)
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
        if _HUGE is not None:
            _libc.madvise(address, size, _HUGE)  # may fail: kernels without huge pages for files

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
