"""Lifetime of shards: until the controller's last handle is collected, or the scope ends in which they arrived.

`Home` owns the shards of one run in the controller: one `Shard` object for each, however often it arrives. It sends
batched deletes from a thread of its own, so that neither the garbage collector nor the user's code waits.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextvars import ContextVar
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple

from rolecall.errors import RolecallError
from rolecall.protocol.worker_methods import CLEAR_SHARDS, ClearShards
from rolecall.tensors import tree
from rolecall.tensors.fetch import Fetcher
from rolecall.tensors.handle import RTensor
from rolecall.tensors.shard import Shard
from rolecall.transport.threads import start_thread

LINGER_S = 0.002  # one garbage collection drops many handles; this puts them into one delete
CLEAR_TIMEOUT_S = 30.0
MAX_BATCH = 16384  # ids in one delete

log = logging.getLogger(__name__)


class _Unreferenced(NamedTuple):
    owner: str
    addresses: tuple[str, ...]
    id: str
    nbytes: int


Shards = weakref.WeakSet[Shard]
Item = _Unreferenced | threading.Event | None  # an event is set when all deletes before it are answered; None ends


class Home:
    """The controller's shards.

    It is the `context` of the peers of workers: it owns the shards of every handle that they decode.

    Args:
        fetcher: Fetches for `localize`, and knows the connections to owners.
    """

    def __init__(self, fetcher: Fetcher) -> None:
        self.fetcher = fetcher
        self._lock = threading.Lock()
        self._known: weakref.WeakValueDictionary[tuple[str, str], Shard] = weakref.WeakValueDictionary()
        # The scopes of this context, innermost last: what arrived in each.
        self._scopes: ContextVar[tuple[Shards, ...]] = ContextVar("rolecall_scopes", default=())
        # SimpleQueue.put may be called from a finalizer that interrupted another put in the same thread.
        self._inbox: SimpleQueue[Item] = SimpleQueue()
        self._pending: list[tuple[str, int, Any]] = []  # owner, number of ids and call of each delete under way
        self._counts = {"adopted": 0, "gone": 0, "live_bytes": 0}  # under the lock
        self._cleared = {"freed": 0, "skipped": 0, "failed": 0, "requests": 0}  # by the thread alone
        self._closed = False
        self._thread = start_thread(self._run, "rolecall-free")

    def adopt(self, shard: Shard) -> Shard:
        """The `Shard` object of this shard, which frees it when the last handle is collected."""
        with self._lock:
            known = self._known.get(shard.key)
            if known is not None:
                return known
            shard.manager = self
            gone = _Unreferenced(shard.owner, shard.addresses, shard.id, shard.nbytes)
            # It runs in a garbage collection, in any thread, which may hold one of our locks: so it takes none.
            shard.collected = weakref.finalize(shard, self._inbox.put, gone)
            shard.collected.atexit = False  # the end of the run frees all shards
            self._known[shard.key] = shard
            self._counts["adopted"] += 1
            self._counts["live_bytes"] += shard.nbytes
            for scope in self._scopes.get()[-1:]:
                scope.add(shard)
        return shard

    def free(self, shards: Iterable[Shard]) -> None:
        """Frees shards, even if handles exist; returns without waiting. May be called twice."""
        for shard in shards:
            shard.freed = True
            if shard.collected is not None:
                shard.collected()  # once

    @contextlib.contextmanager
    def scope(self) -> Iterator[None]:
        """Frees at its end all shards that arrived inside it, except those given to `keep`.

        It covers what this thread or task decodes, and tasks started inside; other threads and tasks, for instance a
        rollout in the background, are not affected. Scopes nest: what the inner one keeps belongs to the outer one.
        """
        scope: Shards = weakref.WeakSet()
        token = self._scopes.set((*self._scopes.get(), scope))
        try:
            yield
        finally:
            self._scopes.reset(token)
            with self._lock:
                shards = list(scope)
            self.free(shards)

    def keep(self, value: Any) -> Any:
        """Removes the shards of all handles in `value` from the innermost scope; returns `value`."""
        *outer, inner = self._scopes.get() or (None,)
        if inner is not None:
            handles = [leaf for leaf in tree.leaves(value) if isinstance(leaf, RTensor)]
            with self._lock:
                kept = inner & {shard for handle in handles for shard in handle.shards}
                inner -= kept
                for scope in outer[-1:]:
                    scope |= kept
        return value

    def flush(self, timeout: float = CLEAR_TIMEOUT_S) -> bool:
        """Waits until owners have answered all deletes so far; False when `timeout` passed."""
        if self._closed:
            return True
        answered = threading.Event()
        self._inbox.put(answered)
        return answered.wait(timeout)

    def metrics(self) -> dict[str, Any]:
        with self._lock:
            live, counts = len(self._known), dict(self._counts)
        gone, done = counts.pop("gone"), self._cleared
        pending = self._inbox.qsize() + gone - done["freed"] - done["skipped"] - done["failed"]
        return {"live_shards": live, "pending": pending, **counts, **done, "fetch": self.fetcher.metrics()}

    def close(self) -> None:
        """Stops freeing: the end of the run frees all shards. May be called twice."""
        if not self._closed:
            self._closed = True
            self._inbox.put(None)
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _run(self) -> None:
        while (first := self._inbox.get()) is not None:
            items = [first, *self._read_inbox()]
            flushes = [item for item in items if isinstance(item, threading.Event)]
            self._send([item for item in items if isinstance(item, _Unreferenced)])
            self._collect_answers(wait=bool(flushes))
            for flush in flushes:
                flush.set()
            if None in items:
                return

    def _read_inbox(self) -> list[Item]:
        items: list[Item] = []
        deadline = time.monotonic() + LINGER_S
        with contextlib.suppress(Empty):
            while len(items) < MAX_BATCH and (left := deadline - time.monotonic()) > 0:
                items.append(self._inbox.get(timeout=left))
                if not isinstance(items[-1], _Unreferenced):
                    break
        return items

    def _send(self, gone: Sequence[_Unreferenced]) -> None:
        batches: dict[tuple[str, tuple[str, ...]], list[str]] = {}
        for item in gone:
            with self._lock:
                self._counts["gone"] += 1
                self._counts["live_bytes"] -= item.nbytes
            again = self._known.get((item.owner, item.id))
            if again is not None and not again.freed:  # it arrived again in another result
                self._cleared["skipped"] += 1
                continue
            batches.setdefault((item.owner, item.addresses), []).append(item.id)
        self.fetcher.cache.discard((owner, i) for (owner, _), ids in batches.items() for i in ids)
        for (owner, addresses), ids in batches.items():
            try:
                answer = self.fetcher.connect(owner, addresses).request(
                    CLEAR_SHARDS.name, ClearShards(shard_ids=ids), timeout=CLEAR_TIMEOUT_S
                )
            except RolecallError:  # the owner is dead, so its shards are freed
                self._cleared["skipped"] += len(ids)
                continue
            except Exception:  # a bug in `connect` must not stop this thread
                log.exception("%d shard(s) on %s were not freed", len(ids), owner)
                self._cleared["failed"] += len(ids)
                continue
            self._cleared["requests"] += 1
            self._pending.append((owner, len(ids), answer))

    def _collect_answers(self, wait: bool) -> None:
        """Counts the deletes that were answered; those without an answer in time have failed."""
        pending, self._pending = self._pending, []
        for owner, ids, answer in pending:
            if not (wait or answer.done):
                self._pending.append((owner, ids, answer))
                continue
            try:
                answer.result()
                self._cleared["freed"] += ids
            except (RolecallError, TimeoutError) as e:
                self._cleared["failed"] += ids
                log.info("%d shard(s) on %s were not freed: %s", ids, owner, e)
