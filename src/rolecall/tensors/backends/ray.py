"""Shards in Ray's object store: any process on a node of the cluster reads them, and Ray moves them between nodes.

Used when `tensor_backend` names it. What Ray does not store goes to the next backend, and a reader that cannot reach
the store asks the owner. The owner's reference keeps an object alive; a reader's tensors stay valid after its end.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from rolecall.errors import ShardNotFoundError, TensorError, WorkerTimeoutError
from rolecall.tensors.backends.ray_session import OTHER_OBJECT, RaySession
from rolecall.tensors.dtypes import Dense, over, row_major
from rolecall.tensors.shard import Shard, Where

SMALLEST = 128 << 10  # Ray keeps objects under 100 KiB in their owner's memory, not in the store
TIMEOUT_S = 300.0  # for a whole fetch; Ray says within 2 s that a process has died, and within 20 s that a node has

OWNER_DIED = "its owner is gone (Ray: OWNER_DIED)"

log = logging.getLogger(__name__)


class RayBackend:
    """The object store of the cluster that RAY_ADDRESS names, connected to when first needed.

    Args:
        timeout: Seconds to wait for objects.
    """

    name = "ray"
    private = False
    waits = True

    def __init__(self, timeout: float = TIMEOUT_S) -> None:
        self._timeout = timeout
        self._session = RaySession()
        self._own: dict[str, tuple[Any, int]] = {}  # single dict operations only, as those of the wire backend
        self._counts = {"read": 0, "read_bytes": 0, "unreachable": 0}
        self._warned = ""

    def put(self, shard_id: str, tensor: Dense, dtype: str) -> Where | None:
        """See `Backend`.

        Raises:
            TensorError: There was never a connection to Ray.
        """
        if tensor.nbytes < SMALLEST:
            return None
        self._session.open()
        problem = self._session.problem
        if not problem:
            try:
                reference, where = self._session.put(row_major(tensor))
                self._own[shard_id] = reference, tensor.nbytes
                return where
            except Exception as e:  # a full disk, for instance; another backend stores it
                problem = f"{type(e).__name__}: {e}"
        self._warn_once(problem)
        return None

    def fetch(self, shards: Sequence[Shard]) -> list[Dense | None]:
        """See `Backend`.

        Raises:
            ShardNotFoundError: Ray has lost them, or their owner is gone.
            WorkerTimeoutError: Ray did not get them in time, and does not know whether they are lost.
        """
        if not shards:
            return []
        with suppress(TensorError):
            self._session.open()
        if problem := self._session.problem:
            self._warn_once(problem)
            _raise_lost([(shard, problem) for shard in shards if shard.id in self._own])
            self._counts["unreachable"] += len(shards)
            return [None] * len(shards)
        known = [(shard, found) for shard in shards if (found := self._reference(shard)) is not None]
        tensors = {shard.id: tensor for (shard, _), tensor in zip(known, self._read(known), strict=True)}
        self._counts["unreachable"] += len(shards) - len(known)
        return [tensors.get(shard.id) for shard in shards]

    def _reference(self, shard: Shard) -> Any:
        """The reference of a shard; None for one of another cluster."""
        own = self._own.get(shard.id)
        if own is not None:
            return own[0]
        place = self._session.place(shard.where)
        if place is None:
            return None
        if self._session.own(place):
            _raise_lost([(shard, "OBJECT_DELETED")])
        return self._session.reference(place)

    def _read(self, known: Sequence[tuple[Shard, Any]]) -> list[Dense]:
        if not known:
            return []
        shards = [shard for shard, _ in known]
        try:
            found = self._session.get([reference for _, reference in known], self._timeout)
        except TimeoutError as e:
            raise WorkerTimeoutError(shards[0].owner, self._timeout, "tensors in Ray's object store") from e
        except Exception as e:  # Ray raises its own kinds and Python's
            _raise_lost([(shard, f"{type(e).__name__}: {e}") for shard in shards], e)
            raise
        pairs = list(zip(shards, found, strict=True))
        _raise_lost([(shard, got) for shard, got in pairs if isinstance(got, str)])
        _raise_lost([(shard, OTHER_OBJECT) for shard, got in pairs if len(got) != shard.nbytes])
        self._counts["read"] += len(pairs)
        self._counts["read_bytes"] += sum(shard.nbytes for shard in shards)
        return [over(got, shard.dtype, (shard.numel,)) for shard, got in pairs]

    def _warn_once(self, problem: str) -> None:
        if problem != self._warned:
            self._warned = problem
            log.warning("Ray's object store cannot be reached, so other tensor backends are used: %s", problem)

    def delete(self, shards: Sequence[Shard]) -> None:
        for shard in shards:
            self._own.pop(shard.id, None)

    def metrics(self) -> dict[str, Any]:
        sizes = [nbytes for _, nbytes in list(self._own.values())]
        return {"shards": len(sizes), "bytes": sum(sizes), "connected": not self._session.problem, **self._counts}

    def close(self) -> None:
        self._own.clear()
        self._session.close()


def _raise_lost(lost: Sequence[tuple[Shard, str]], cause: BaseException | None = None) -> None:
    """Raises for the shards of the first owner, if there are any."""
    if lost:
        first, kind = lost[0]
        ids = [shard.id for shard, _ in lost if shard.owner == first.owner]
        reason = f"Ray's object store lost them: {kind}"
        reason = {"OBJECT_DELETED": "", "OBJECT_FREED": "", "OWNER_DIED": OWNER_DIED}.get(kind, reason)
        raise ShardNotFoundError(ids, first.owner, reason) from cause
