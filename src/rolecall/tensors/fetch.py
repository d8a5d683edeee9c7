"""The fetcher: from handles to tensors, with one request to each owner, to all owners at once.

Planning and assembling are plain functions of the plan; only waiting for the answers differs between threads and tasks.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from operator import attrgetter
from typing import Any, NamedTuple

from rolecall.errors import ProtocolError, RPCConnectionError, ShardNotFoundError, WorkerFailedError, WorkerTimeoutError
from rolecall.protocol.worker_methods import GET_SHARDS, GetShards
from rolecall.tensors.backends import Backend
from rolecall.tensors.connections import Connect
from rolecall.tensors.dtypes import Dense, copied, empty, fill, native_dtype
from rolecall.tensors.handle import Piece, RTensor
from rolecall.tensors.shard import Shard, grouped
from rolecall.tensors.store import Store
from rolecall.transport.threads import in_thread

Key = tuple[str, str]  # owner and id of a shard
LARGE = 1 << 20  # copying more bytes takes longer than a small fetch
REMEMBERED = 4096  # keys of large blocks that were fetched once


class Block(NamedTuple):
    """Elements `start` to `stop` of a shard.

    Attributes:
        private: Nothing else reads this memory, so that it may be returned without a copy.
    """

    start: int
    stop: int
    tensor: Dense
    private: bool

    def covers(self, start: int, stop: int) -> bool:
        return self.start <= start and stop <= self.stop

    def part(self, start: int, stop: int) -> Dense:
        """Its memory from `start` to `stop` of the shard."""
        whole = start == self.start and stop == self.stop
        return self.tensor if whole else self.tensor[start - self.start : stop - self.start]


class Cache:
    """Evicts least recently used shards. Large blocks are cached from their second fetch on, since most are read once
    and every hit is a copy. Mapped shards are not cached: mapping again is cheap, and their owner could not reuse the
    memory.

    Args:
        budget: Bytes to keep; 0 keeps nothing.
    """

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self._lock = threading.Lock()
        self._blocks: OrderedDict[Key, list[Block]] = OrderedDict()
        self._once: OrderedDict[tuple[Key, int, int], None] = OrderedDict()
        self._bytes = 0
        self._counts = {"hits": 0, "misses": 0, "evicted": 0, "evicted_bytes": 0}

    def get(self, wanted: Sequence[tuple[Key, int, int]]) -> list[Block | None]:
        """For each shard and range of elements a cached block that covers it."""
        with self._lock:
            found: list[Block | None] = [None] * len(wanted)
            for at, (key, start, stop) in enumerate(wanted if self._blocks else ()):
                found[at] = next((block for block in self._blocks.get(key, ()) if block.covers(start, stop)), None)
                if found[at] is not None:
                    self._blocks.move_to_end(key)
            missed = found.count(None)
            self._counts["misses"] += missed
            self._counts["hits"] += len(found) - missed
            return found

    def put(self, key: Key, block: Block) -> bool:
        """Caches a block if the policy says so. When it returns True, the memory belongs to the cache."""
        size = block.tensor.nbytes
        if size > self.budget:
            return False
        with self._lock:
            if size >= LARGE and not self._fetched_before((key, block.start, block.stop)):
                return False
            kept = self._blocks.setdefault(key, [])
            inside = [old for old in kept if block.covers(old.start, old.stop)]
            kept[:] = [old for old in kept if not block.covers(old.start, old.stop)]
            kept.append(block._replace(private=False))
            self._blocks.move_to_end(key)
            self._bytes += size - sum(old.tensor.nbytes for old in inside)
            while self._bytes > self.budget:
                self._evict(next(iter(self._blocks)))
        return True

    def _fetched_before(self, key: tuple[Key, int, int]) -> bool:
        if key in self._once:
            return True
        self._once[key] = None
        if len(self._once) > REMEMBERED:
            self._once.popitem(last=False)
        return False

    def discard(self, keys: Iterable[Key]) -> None:
        """Drops these shards."""
        with self._lock:
            for key in keys:
                if key in self._blocks:
                    self._evict(key)

    def _evict(self, key: Key) -> None:
        gone = self._blocks.pop(key)
        size = sum(block.tensor.nbytes for block in gone)
        self._bytes -= size
        self._counts["evicted"] += 1
        self._counts["evicted_bytes"] += size

    def metrics(self) -> dict[str, Any]:
        with self._lock:
            return {"shards": len(self._blocks), "bytes": self._bytes, "budget": self.budget, **self._counts}


TIMEOUT_S = 300.0  # for one owner's whole answer; a dead owner is noticed long before
INLINE = 4 << 20  # bytes copied on an event loop's own thread at most; more would delay every other task


class _Plan:
    """The blocks that are here already, and the pieces that are not."""

    def __init__(self, missing: list[Piece]) -> None:
        self.missing = missing
        self.blocks: dict[Key, list[Block]] = {}

    def add(self, shard: Shard, block: Block) -> None:
        self.blocks.setdefault(shard.key, []).append(block)

    def add_whole(self, shards: Sequence[Shard], tensors: Sequence[Dense | None], private: bool) -> int:
        """Takes in those whole shards that were found; returns their bytes."""
        found = {shard.key for shard, tensor in zip(shards, tensors, strict=True) if tensor is not None}
        for shard, tensor in zip(shards, tensors, strict=True):
            if tensor is not None:
                self.add(shard, Block(0, shard.numel, tensor, private))
        self.missing = [piece for piece in self.missing if piece.shard.key not in found]
        return sum(shard.nbytes for shard in shards if shard.key in found)

    def block(self, piece: Piece) -> Block:
        blocks = self.blocks[piece.shard.key]
        return blocks[0] if len(blocks) == 1 else next(b for b in blocks if b.covers(piece.start, piece.stop))


class Fetcher:
    """Turns handles into tensors. Any thread and any event loop may use it.

    A fetched tensor is the caller's own: changing it in place changes neither the shard nor a cached copy. Handles that
    share elements and are fetched together may share memory, as views of one tensor do.

    Args:
        connect: Gives the connection to an owner.
        cache: Keeps what came over connections.
        backends: Those that can reach bytes without asking the owner, by name.
        store: This worker's own shards, read directly.
        timeout: Seconds to wait for an owner.
    """

    def __init__(
        self,
        connect: Connect,
        cache: Cache,
        backends: Mapping[str, Backend],
        store: Store | None = None,
        timeout: float = TIMEOUT_S,
    ) -> None:
        self.cache = cache
        self.connect, self._backends, self._store, self._timeout = connect, dict(backends), store, timeout
        named = {**(store.backends if store is not None else {}), **self._backends}
        self._waiting = {name for name, backend in named.items() if backend.waits}
        self._counts = {"fetches": 0, "mapped_bytes": 0, "wire_bytes": 0, "cached_bytes": 0, "own_bytes": 0}

    def fetch(self, handles: Sequence[RTensor]) -> list[Dense]:
        """The tensors of these handles; blocks.

        Raises:
            ShardNotFoundError: Shards were freed, or their owner is gone.
            WorkerTimeoutError: An owner did not answer in time.
        """
        plan = self._plan(handles)
        with self._asked(plan) as asked:
            for pieces, answer in asked:
                with _told_as(pieces, self._timeout):
                    self._take(plan, pieces, answer.result())
        return _assemble(plan, handles)

    async def afetch(self, handles: Sequence[RTensor]) -> list[Dense]:
        """As `fetch`, for a task; long copies and waits are made beside the loop."""
        waits = bool(self._waiting) and any(p.shard.backend in self._waiting for h in handles for p in h.pieces)
        heavy = waits or sum(handle.nbytes for handle in handles) > INLINE
        plan = await in_thread(self._plan, handles) if heavy else self._plan(handles)
        with self._asked(plan) as asked:
            for pieces, answer in asked:
                with _told_as(pieces, self._timeout):
                    self._take(plan, pieces, await answer)
        return await in_thread(_assemble, plan, handles) if heavy else _assemble(plan, handles)

    def metrics(self) -> dict[str, Any]:
        return {**self._counts, "cache": self.cache.metrics()}

    def _plan(self, handles: Sequence[RTensor]) -> _Plan:
        self._counts["fetches"] += 1
        plan = _Plan(_pieces(handles))
        self._read_own(plan)
        self._read_cached(plan)
        self._read_reachable(plan)
        return plan

    def _read_own(self, plan: _Plan) -> None:
        store = self._store
        if store is None:
            return
        ids = dict.fromkeys(piece.shard.id for piece in plan.missing if piece.shard.owner == store.owner)
        for name, shards in grouped(store.find(ids), attrgetter("backend")).items():
            found = plan.add_whole(shards, store.fetch(shards), store.backends[name].private)
            self._counts["own_bytes"] += found

    def _read_cached(self, plan: _Plan) -> None:
        missing = []
        found = self.cache.get([(shard.key, start, stop) for shard, start, stop in plan.missing])
        for piece, block in zip(plan.missing, found, strict=True):
            if block is None:
                missing.append(piece)
            else:
                plan.add(piece.shard, block)
                self._counts["cached_bytes"] += block.tensor.nbytes
        plan.missing = missing

    def _read_reachable(self, plan: _Plan) -> None:
        shards = {piece.shard.key: piece.shard for piece in plan.missing}
        for name, group in grouped(shards.values(), attrgetter("backend")).items():
            if (backend := self._backends.get(name)) is not None:
                self._counts["mapped_bytes"] += plan.add_whole(group, backend.fetch(group), backend.private)

    @contextmanager
    def _asked(self, plan: _Plan) -> Iterator[list[tuple[list[Piece], Any]]]:
        """Asks all owners at once, each for its pieces; cancels what is not answered at the end of the block."""
        asked: list[tuple[list[Piece], Any]] = []
        try:
            for owner, pieces in grouped(plan.missing, attrgetter("shard.owner")).items():
                ids, ranges = [p.shard.id for p in pieces], [(p.start, p.stop) for p in pieces]
                wanted = GetShards(shard_ids=ids, ranges=ranges)
                with _told_as(pieces, self._timeout):
                    peer = self.connect(owner, pieces[0].shard.addresses)
                    asked.append((pieces, peer.request(GET_SHARDS.name, wanted, timeout=self._timeout)))
            yield asked
        finally:
            for _, answer in asked:
                answer.cancel()

    def _take(self, plan: _Plan, pieces: list[Piece], answer: Any) -> None:
        """Puts an owner's answer into the plan, and into the cache."""
        owner = pieces[0].shard.owner
        if not isinstance(answer, list) or len(answer) != len(pieces):
            raise ProtocolError(f"{owner} answered data.get with something else", type(answer).__name__)
        dtypes = {name: native_dtype(name) for name in {piece.shard.dtype for piece in pieces}}
        for (shard, start, stop), tensor in zip(pieces, answer, strict=True):
            dtype = dtypes[shard.dtype]
            if getattr(tensor, "dtype", None) != dtype or tensor.nbytes != (stop - start) * dtype.itemsize:
                raise ProtocolError(f"{owner} answered data.get with another tensor", shard.id)
            block = Block(start, stop, tensor if tensor.ndim == 1 else tensor.reshape(-1), True)
            plan.add(shard, block._replace(private=False) if self.cache.put(shard.key, block) else block)
        self._counts["wire_bytes"] += sum(tensor.nbytes for tensor in answer)


def _pieces(handles: Sequence[RTensor]) -> list[Piece]:
    """What is needed of each shard, each element once."""
    by_shard: dict[Key, list[Piece]] = {}
    for handle in handles:
        for piece in handle.pieces:
            by_shard.setdefault(piece.shard.key, []).append(piece)
    freed = [pieces[0].shard for pieces in by_shard.values() if pieces[0].shard.freed]
    if freed:
        raise ShardNotFoundError([shard.id for shard in freed], freed[0].owner)
    return [piece for pieces in by_shard.values() for piece in (pieces if len(pieces) == 1 else _joined(pieces))]


def _joined(pieces: Sequence[Piece]) -> list[Piece]:
    """Pieces of one shard, in order; those that touch are joined."""
    joined: list[Piece] = []
    for shard, start, stop in sorted(pieces, key=lambda piece: piece[1:]):
        if joined and start <= joined[-1].stop:
            joined[-1] = Piece(shard, joined[-1].start, max(stop, joined[-1].stop))
        else:
            joined.append(Piece(shard, start, stop))
    return joined


def _assemble(plan: _Plan, handles: Sequence[RTensor]) -> list[Dense]:
    done: dict[Any, Dense] = {}  # handles that say the same share their memory
    tensors = []
    for handle in handles:
        same = handle.shape, handle.pieces
        tensor = done.get(same)
        if tensor is None:
            tensor = done[same] = _tensor(plan, handle)
        tensors.append(tensor)
    return tensors


def _tensor(plan: _Plan, handle: RTensor) -> Dense:
    """A handle's tensor from blocks: the block itself where it is one piece and nobody else's, else one copy."""
    pieces, shape = handle.pieces, handle.shape
    if len(pieces) == 1:
        block = plan.block(pieces[0])
        part = block.part(pieces[0].start, pieces[0].stop)
        if len(shape) != 1:
            part = part.reshape(shape)
        return part if block.private else copied(handle.dtype_name, part)
    flat, at = empty(handle.dtype_name, (handle.numel(),)), 0
    for piece in pieces:
        size = piece.stop - piece.start
        fill(flat[at : at + size], plan.block(piece).part(piece.start, piece.stop))
        at += size
    return flat.reshape(shape)


@contextmanager
def _told_as(pieces: list[Piece], timeout: float) -> Iterator[None]:
    """Turns what a connection raises into what the user can act on: which owner, which shards."""
    try:
        yield
    except (RPCConnectionError, WorkerFailedError) as e:
        ids = list(dict.fromkeys(piece.shard.id for piece in pieces))
        raise ShardNotFoundError(ids, pieces[0].shard.owner, f"its owner is gone: {e}") from e
    except TimeoutError as e:
        raise WorkerTimeoutError(pieces[0].shard.owner, timeout, "tensors") from e
