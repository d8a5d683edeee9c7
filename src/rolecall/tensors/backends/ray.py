"""Shards in Ray's object store: any process on a node of the cluster reads them, and Ray moves them between nodes.

Used when `tensor_backend` names it. What Ray does not store goes to the next backend, and a reader that cannot reach
the store asks the owner. The owner's reference keeps an object alive; a reader's tensors stay valid after its end.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rolecall.errors import ShardNotFoundError, TensorError, WorkerTimeoutError
from rolecall.tensors.backends.ray_session import OTHER_OBJECT, RaySession
from rolecall.tensors.dtypes import over
from rolecall.tensors.raw import row_major
from rolecall.tensors.shard import Shard, Where

if TYPE_CHECKING:
    import torch

SMALLEST = 128 << 10  # Ray keeps objects under 100 KiB in their owner's memory, not in the store
TIMEOUT_S = 300.0  # for a whole fetch; Ray says within 2 s that a process has died, and within 20 s that a node has

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

    def put(self, shard_id: str, tensor: torch.Tensor) -> Where | None:
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

    def fetch(self, shards: Sequence[Shard]) -> list[torch.Tensor | None]:
        """See `Backend`.

        Raises:
            ShardNotFoundError: Ray has lost them, or their owner is gone.
            WorkerTimeoutError: Ray did not get them in time, and does not know whether they are lost.
        """
        if not shards:
            return []
        if problem := self._problem():
            self._warn_once(problem)
            _raise_lost([(shard, problem) for shard in shards if shard.id in self._own])
            self._counts["unreachable"] += len(shards)
            return [None] * len(shards)
        references = [(shard, self._reference(shard)) for shard in shards]
        known = [(shard, reference) for shard, reference in references if reference is not None]
        found = {shard.id: tensor for (shard, _), tensor in zip(known, self._read(known), strict=True)}
        self._counts["unreachable"] += len(shards) - len(known)
        return [found.get(shard.id) for shard in shards]

    def _reference(self, shard: Shard) -> Any:
        """The reference of a shard; None for one of another cluster."""
        own = self._own.get(shard.id)
        if own is not None:
            return own[0]
        if not self._session.knows(shard.where):
            return None
        if self._session.own(shard.where):
            _raise_lost([(shard, "OBJECT_DELETED")])
        return self._session.reference(shard.where)

    def _read(self, known: Sequence[tuple[Shard, Any]]) -> list[torch.Tensor]:
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
        whole = [(shard, got) for shard, got in pairs if not isinstance(got, str)]
        _raise_lost([(shard, OTHER_OBJECT) for shard, got in whole if got.nbytes != shard.nbytes])
        self._counts["read"] += len(whole)
        self._counts["read_bytes"] += sum(shard.nbytes for shard in shards)
        return [over(got, shard.dtype, shard.numel) for shard, got in whole]

    def _problem(self) -> str:
        try:
            self._session.open()
        except TensorError as e:
            return str(e)
        return self._session.problem

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
        raise ShardNotFoundError(ids, first.owner, _reason(kind)) from cause


def _reason(kind: str) -> str:
    if kind in ("OBJECT_DELETED", "OBJECT_FREED"):
        return ""  # they were cleared
    return "its owner is gone (Ray: OWNER_DIED)" if kind == "OWNER_DIED" else f"Ray's object store lost them: {kind}"
