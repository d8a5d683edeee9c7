"""The fetcher: from handles to tensors, with one request to each owner, to all owners at once.

Planning and assembling are plain functions of the plan; only waiting for the answers differs between threads and tasks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rolecall.errors import ProtocolError, RPCConnectionError, ShardNotFoundError, WorkerFailedError, WorkerTimeoutError
from rolecall.protocol.message import to_plain
from rolecall.protocol.worker_methods import GET_SHARDS, GetShards
from rolecall.tensors.backends.base import Backend
from rolecall.tensors.cache import Block, Cache, Key
from rolecall.tensors.connections import Answer, Connect
from rolecall.tensors.dtypes import empty, torch_dtype
from rolecall.tensors.handle import RTensor
from rolecall.tensors.shard import Shard
from rolecall.tensors.store import Store

if TYPE_CHECKING:
    import torch

TIMEOUT_S = 300.0  # for one owner's whole answer; a dead owner is noticed long before
INLINE = 4 << 20  # bytes copied on an event loop's own thread at most; more would delay every other task


@dataclass(slots=True)
class _Want:
    """What is needed of one shard: ranges of elements, joined, in order."""

    shard: Shard
    ranges: list[tuple[int, int]] = field(default_factory=list)

    def join(self) -> None:
        if len(self.ranges) == 1:
            return
        joined: list[tuple[int, int]] = []
        for start, stop in sorted(self.ranges):
            if joined and start <= joined[-1][1]:
                joined[-1] = (joined[-1][0], max(stop, joined[-1][1]))
            else:
                joined.append((start, stop))
        self.ranges = joined


@dataclass
class _Batch:
    """What one owner is asked for, and its answer under way."""

    owner: str
    addresses: tuple[str, ...]
    asked: list[tuple[Shard, int, int]]
    answer: Answer | None = None

    @property
    def ids(self) -> list[str]:
        return list(dict.fromkeys(shard.id for shard, _, _ in self.asked))

    def request(self) -> Any:
        """As the owner gets it."""
        ranges = [(start, stop) for _, start, stop in self.asked]
        return to_plain(GetShards(shard_ids=[shard.id for shard, _, _ in self.asked], ranges=ranges))


class _Plan:
    """The blocks that are here already, and the batches that are not."""

    def __init__(self) -> None:
        self.blocks: dict[Key, list[Block]] = {}
        self.batches: list[_Batch] = []

    def add(self, shard: Shard, block: Block) -> None:
        self.blocks.setdefault(shard.key, []).append(block)

    def block(self, shard: Shard, start: int, stop: int) -> Block:
        blocks = self.blocks[shard.key]
        return blocks[0] if len(blocks) == 1 else next(block for block in blocks if block.covers(start, stop))


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
        self._connect, self._backends, self._store, self._timeout = connect, dict(backends), store, timeout
        named = {**(store.backends if store is not None else {}), **self._backends}
        self._waiting = {name for name, backend in named.items() if backend.waits}
        self._counts = {"fetches": 0, "mapped_bytes": 0, "wire_bytes": 0, "cached_bytes": 0, "own_bytes": 0}

    def fetch(self, handles: Sequence[RTensor]) -> list[torch.Tensor]:
        """The tensors of these handles; blocks.

        Raises:
            ShardNotFoundError: Shards were freed, or their owner is gone.
            WorkerTimeoutError: An owner did not answer in time.
        """
        plan = self._plan(handles)
        try:
            for batch in plan.batches:
                self._ask(batch)
            for batch in plan.batches:
                with _told_as(batch, self._timeout):
                    self._take(plan, batch, batch.answer.result() if batch.answer else None)
        finally:
            _cancel(plan.batches)
        return self._assemble(plan, handles)

    async def afetch(self, handles: Sequence[RTensor]) -> list[torch.Tensor]:
        """As `fetch`, for a task; long copies and waits are made beside the loop."""
        heavy = sum(handle.nbytes for handle in handles) > INLINE or self._waits(handles)
        plan = await asyncio.to_thread(self._plan, handles) if heavy else self._plan(handles)
        try:
            for batch in plan.batches:
                self._ask(batch)
            for batch in plan.batches:
                with _told_as(batch, self._timeout):
                    self._take(plan, batch, await batch.answer if batch.answer else None)
        finally:
            _cancel(plan.batches)
        return await asyncio.to_thread(self._assemble, plan, handles) if heavy else self._assemble(plan, handles)

    def _waits(self, handles: Sequence[RTensor]) -> bool:
        return bool(self._waiting) and any(p.shard.backend in self._waiting for h in handles for p in h.pieces)

    def metrics(self) -> dict[str, Any]:
        return {**self._counts, "cache": self.cache.metrics()}

    def _plan(self, handles: Sequence[RTensor]) -> _Plan:
        plan = _Plan()
        wants = _wants(handles)
        wants = self._read_own(plan, wants)
        wants = self._read_cached(plan, wants)
        wants = self._read_reachable(plan, wants)
        plan.batches = _batches(wants)
        self._counts["fetches"] += 1
        return plan

    def _read_own(self, plan: _Plan, wants: list[_Want]) -> list[_Want]:
        store = self._store
        if store is None:
            return wants
        own = [want for want in wants if want.shard.owner == store.owner]
        if not own:
            return wants
        shards = store.find(want.shard.id for want in own)
        for want, shard, tensor in zip(own, shards, store.fetch(shards), strict=True):
            private = store.backends[shard.backend].private
            plan.add(want.shard, Block(0, want.shard.numel, tensor, private))
            self._counts["own_bytes"] += want.shard.nbytes
        return [want for want in wants if want.shard.owner != store.owner]

    def _read_cached(self, plan: _Plan, wants: list[_Want]) -> list[_Want]:
        missing = []
        for want in wants:
            found = [self.cache.get(want.shard.key, start, stop) for start, stop in want.ranges]
            for block in found:
                if block is not None:
                    plan.add(want.shard, block)
                    self._counts["cached_bytes"] += block.tensor.nbytes
            left = [r for r, block in zip(want.ranges, found, strict=True) if block is None]
            if left:
                missing.append(want if len(left) == len(want.ranges) else _Want(want.shard, left))
        return missing

    def _read_reachable(self, plan: _Plan, wants: list[_Want]) -> list[_Want]:
        missing = []
        for name in dict.fromkeys(want.shard.backend for want in wants):
            group = [want for want in wants if want.shard.backend == name]
            backend = self._backends.get(name)
            tensors = backend.fetch([want.shard for want in group]) if backend else [None] * len(group)
            for want, tensor in zip(group, tensors, strict=True):
                if backend is None or tensor is None:
                    missing.append(want)
                    continue
                plan.add(want.shard, Block(0, want.shard.numel, tensor, backend.private))
                self._counts["mapped_bytes"] += want.shard.nbytes
        return missing

    def _ask(self, batch: _Batch) -> None:
        with _told_as(batch, self._timeout):
            peer = self._connect(batch.owner, batch.addresses)
            batch.answer = peer.request(GET_SHARDS.name, batch.request(), timeout=self._timeout)

    def _take(self, plan: _Plan, batch: _Batch, answer: Any) -> None:
        """Puts an owner's answer into the plan, and into the cache."""
        if not isinstance(answer, list) or len(answer) != len(batch.asked):
            raise ProtocolError(f"{batch.owner} answered data.get with something else", type(answer).__name__)
        for (shard, start, stop), tensor in zip(batch.asked, answer, strict=True):
            if getattr(tensor, "dtype", None) is not torch_dtype(shard.dtype) or tensor.numel() != stop - start:
                raise ProtocolError(f"{batch.owner} answered data.get with another tensor", shard.id)
            block = Block(start, stop, tensor if tensor.dim() == 1 else tensor.view(-1), private=True)
            kept = self.cache.put(shard.key, block)
            plan.add(shard, block._replace(private=False) if kept else block)
            self._counts["wire_bytes"] += tensor.nbytes

    def _assemble(self, plan: _Plan, handles: Sequence[RTensor]) -> list[torch.Tensor]:
        done: dict[Any, torch.Tensor] = {}  # a handle sent three times arrives as three that say the same
        same = [(h.shape, tuple((*p.shard.key, p.start, p.stop) for p in h.pieces)) for h in handles]
        for key, handle in zip(same, handles, strict=True):
            if key not in done:
                done[key] = _tensor(plan, handle)
        return [done[key] for key in same]


def _wants(handles: Sequence[RTensor]) -> list[_Want]:
    wants: dict[Key, _Want] = {}
    for handle in handles:
        for shard, start, stop in handle.pieces:
            want = wants.get(shard.key)
            if want is None:
                wants[shard.key] = _Want(shard, [(start, stop)])
            else:
                want.ranges.append((start, stop))
    freed = [want.shard for want in wants.values() if want.shard.freed]
    if freed:
        raise ShardNotFoundError([shard.id for shard in freed], freed[0].owner)
    for want in wants.values():
        want.join()
    return list(wants.values())


def _batches(wants: Sequence[_Want]) -> list[_Batch]:
    batches: dict[str, _Batch] = {}
    for want in wants:
        shard = want.shard
        batch = batches.setdefault(shard.owner, _Batch(shard.owner, shard.addresses, []))
        batch.asked += [(shard, start, stop) for start, stop in want.ranges]
    return list(batches.values())


def _tensor(plan: _Plan, handle: RTensor) -> torch.Tensor:
    """A handle's tensor from blocks: the block itself where it is one piece and nobody else's, else one copy."""
    if len(handle.pieces) == 1:
        shard, start, stop = handle.pieces[0]
        block = plan.block(shard, start, stop)
        whole = (block.start, block.stop) == (start, stop)
        part = block.tensor if whole else block.tensor[start - block.start : stop - block.start]
        if len(handle.shape) != 1:
            part = part.view(handle.shape)
        return part if block.private else empty(handle.dtype_name, handle.shape).copy_(part)
    out = empty(handle.dtype_name, handle.shape)
    flat, at = out.view(-1), 0
    for shard, start, stop in handle.pieces:
        block = plan.block(shard, start, stop)
        flat[at : at + stop - start] = block.tensor[start - block.start : stop - block.start]
        at += stop - start
    return out


@contextmanager
def _told_as(batch: _Batch, timeout: float) -> Iterator[None]:
    """Turns what a connection raises into what the user can act on: which owner, which shards."""
    try:
        yield
    except (RPCConnectionError, WorkerFailedError) as e:
        raise ShardNotFoundError(batch.ids, batch.owner, f"its owner is gone: {e}") from e
    except TimeoutError as e:
        raise WorkerTimeoutError(batch.owner, timeout, "tensors") from e


def _cancel(batches: Sequence[_Batch]) -> None:
    for batch in batches:
        if batch.answer is not None and not batch.answer.done:
            batch.answer.cancel()
