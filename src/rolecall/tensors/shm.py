"""Bytes in shared memory: on the same host they are mapped, not copied. Elsewhere the fetcher asks the owner.

The owner opens nothing by name: a shard says `/proc/<pid>/fd/<n>` and the file's inode, and in front of its elements
stands its id, so that a process id, a descriptor or a segment that meanwhile serves another is noticed.

Readers map privately (copy on write) through a descriptor that was opened for reading: a tensor can be changed in
place, the change is the reader's own, and the owner's bytes cannot be reached by it. Shards under 1 MiB share segments
and are copied out, because a mapping would keep the whole segment from reuse and cost a descriptor.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import stat
import threading
import weakref
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rolecall.tensors import segments
from rolecall.tensors.dtypes import over
from rolecall.tensors.segments import HEADER, MIB, Pool, Segment
from rolecall.tensors.shard import Shard, Where

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

SMALLEST = 64 << 10  # below, a round trip costs less than opening and mapping
PACKED = MIB  # below, shards share segments
SLAB = 16 * MIB

_F_GET_SEALS = getattr(fcntl, "F_GET_SEALS", 0)
_F_SEAL_SHRINK = getattr(fcntl, "F_SEAL_SHRINK", 0)
_NO_RESERVE = getattr(mmap, "MAP_NORESERVE", 0)


@cache
def host_identity() -> str:
    """Equal in two processes that can reach each other's `/proc/<pid>/fd`: same boot, same process ids."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot}/{Path('/proc/self/ns/pid').readlink()}"


@dataclass
class _Slab:
    segment: Segment
    used: int = 0
    shards: set[str] = field(default_factory=set)


class ShmBackend:
    """Shared memory of this host.

    Args:
        budget: Bytes of segments to keep for reuse, default a 32nd of the memory, at most 4 GiB.
        limit: Number of segments; beyond it `put` takes nothing more and shards go to the next backend.
        mappings: Number of tensors that readers here may have mapped at a time; further ones are copied.
    """

    name = "shm"
    private = True

    def __init__(self, budget: int | None = None, limit: int | None = None, mappings: int | None = None) -> None:
        limit = segments.default_limit() if limit is None else limit
        self._pool = Pool(segments.default_budget() if budget is None else budget, limit)
        self._mappings = limit if mappings is None else mappings
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._own: dict[str, Segment] = {}
        self._packed: dict[str, tuple[_Slab, int]] = {}
        self._slab: _Slab | None = None
        self._mapped: weakref.WeakSet[mmap.mmap] = weakref.WeakSet()
        self._counts = {"mapped": 0, "copied": 0, "unreachable": 0}

    def put(self, shard_id: str, tensor: torch.Tensor) -> Where | None:
        if tensor.nbytes < SMALLEST or not segments.available():
            return None
        place = self._place(shard_id, tensor.nbytes)
        if place is None:
            return None
        segment, offset = place
        name = str(tensor.dtype).removeprefix("torch.")
        try:
            over(segment.memory, name, tensor.numel(), offset).view(tensor.shape).copy_(tensor.detach())
        except BaseException:
            with self._lock:
                self._free(shard_id)
            raise
        segment.mark(offset, shard_id)
        return {
            "host": host_identity(),
            "pid": self._pid,
            "fd": segment.fd,
            "inode": segment.inode,
            "offset": offset,
        }

    def _place(self, shard_id: str, nbytes: int) -> tuple[Segment, int] | None:
        with self._lock:
            if nbytes < PACKED:
                return self._place_packed(shard_id, nbytes)
            segment = self._pool.take(HEADER + nbytes)
            if segment is None:
                return None
            self._own[shard_id] = segment
            return segment, HEADER

    def _place_packed(self, shard_id: str, nbytes: int) -> tuple[Segment, int] | None:
        room = HEADER + -(-nbytes // HEADER) * HEADER
        slab = self._slab
        if slab is None or slab.used + room > slab.segment.capacity:
            segment = self._pool.take(SLAB)
            if segment is None:
                return None
            if slab is not None and not slab.shards:
                self._pool.give_back(slab.segment)
            slab = self._slab = _Slab(segment)
        offset = slab.used + HEADER
        slab.used += room
        slab.shards.add(shard_id)
        self._packed[shard_id] = (slab, offset)
        return slab.segment, offset

    def delete(self, shards: Sequence[Shard]) -> None:
        with self._lock:
            for shard in shards:
                self._free(shard.id)

    def _free(self, shard_id: str) -> None:
        if (segment := self._own.pop(shard_id, None)) is not None:
            segment.wipe(HEADER)
            self._pool.give_back(segment)
        elif (packed := self._packed.pop(shard_id, None)) is not None:
            slab, offset = packed
            slab.segment.wipe(offset)
            slab.shards.discard(shard_id)
            if not slab.shards and slab is not self._slab:
                self._pool.give_back(slab.segment)

    def fetch(self, shards: Sequence[Shard]) -> list[torch.Tensor | None]:
        """Maps large shards and copies packed ones; None for what lies on another host or cannot be opened."""
        found: dict[str, torch.Tensor | None] = {}
        slabs: dict[tuple[Any, Any], mmap.mmap | None] = {}  # each is opened once for all its shards
        for shard in shards:
            if shard.id in found:
                continue
            if shard.nbytes >= PACKED:
                found[shard.id] = self._map_whole(shard)
                continue
            at = (shard.where.get("pid"), shard.where.get("inode"))
            if at not in slabs:
                slabs[at] = _open(shard.where)
            found[shard.id] = self._copy_out(slabs[at], shard)
        return [self._read_held(shard) if found[shard.id] is None else found[shard.id] for shard in shards]

    def _read_held(self, shard: Shard) -> torch.Tensor | None:
        """A copy of an own shard, when it cannot be mapped again (no descriptor left, `/proc` out of sight)."""
        with self._lock:  # against its being freed meanwhile
            if (segment := self._own.get(shard.id)) is not None:
                return over(segment.memory, shard.dtype, shard.numel, HEADER).clone()
            if (packed := self._packed.get(shard.id)) is not None:
                slab, offset = packed
                return over(slab.segment.memory, shard.dtype, shard.numel, offset).clone()
        return None

    def _map_whole(self, shard: Shard) -> torch.Tensor | None:
        memory = _open(shard.where)
        if memory is None or len(self._mapped) >= self._mappings:
            return self._copy_out(memory, shard)
        tensor = _view(memory, shard)
        if tensor is None:
            self._counts["unreachable"] += 1
            return None
        segments.advise_huge(memory)
        self._mapped.add(memory)
        self._counts["mapped"] += 1
        return tensor

    def _copy_out(self, memory: mmap.mmap | None, shard: Shard) -> torch.Tensor | None:
        tensor = None if memory is None else _view(memory, shard)
        self._counts["unreachable" if tensor is None else "copied"] += 1
        return None if tensor is None else tensor.clone()

    def metrics(self) -> dict[str, Any]:
        with self._lock:
            shards = len(self._own) + len(self._packed)
        return {"shards": shards, "mappings": len(self._mapped), **self._counts, **self._pool.metrics()}

    def close(self) -> None:
        with self._lock:
            for segment in self._own.values():
                segment.wipe(HEADER)
            for slab, offset in self._packed.values():
                slab.segment.wipe(offset)
            self._own.clear()
            self._packed.clear()
            self._slab = None
            self._pool.close()


def _view(memory: mmap.mmap, shard: Shard) -> torch.Tensor | None:
    """The shard's elements in `memory`, or None when another shard or none lies there now."""
    offset = shard.where.get("offset")
    if not isinstance(offset, int) or offset < HEADER or offset % HEADER or offset + shard.nbytes > len(memory):
        return None
    if memory[offset - HEADER : offset - HEADER + 16] != bytes.fromhex(shard.id):
        return None
    return over(memory, shard.dtype, shard.numel, offset)


def _open(where: Where) -> mmap.mmap | None:
    """The owner's segment, locked against reuse and mapped privately; None when it cannot be reached from here.

    The mapping keeps a duplicate of the descriptor, and with it the lock, exactly as long as it lives itself.
    """
    pid, number, inode = where.get("pid"), where.get("fd"), where.get("inode")
    if where.get("host") != host_identity() or not all(type(n) is int and n >= 0 for n in (pid, number, inode)):
        return None
    path = Path(f"/proc/{pid}/fd/{number}")
    try:
        if not _is_segment(path.stat(), inode):  # looked at first: opening a stranger's pipe could disturb it
            return None
        with _opened(path) as fd:
            if not _is_segment(os.fstat(fd), inode) or not fcntl.fcntl(fd, _F_GET_SEALS) & _F_SEAL_SHRINK:
                return None
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
            size = os.fstat(fd).st_size
            return mmap.mmap(fd, size, flags=mmap.MAP_PRIVATE | _NO_RESERVE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    except OSError:  # the owner is gone, is another user's, hides its descriptors, or tests the lock just now
        return None


def _is_segment(status: os.stat_result, inode: Any) -> bool:
    return stat.S_ISREG(status.st_mode) and status.st_ino == inode and status.st_nlink == 0


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        yield fd
    finally:
        os.close(fd)
