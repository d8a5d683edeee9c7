"""`localize`, `remotize`, `clear`: what users do with nested values that hold tensors or handles.

They find who fetches and frees through the handles themselves; in a worker that is its `DataService`, see `binding`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rolecall.errors import TensorError
from rolecall.protocol.worker_methods import PUT_VALUE
from rolecall.tensors import tree
from rolecall.tensors.handle import RTensor, afetch, fetch
from rolecall.tensors.service import DataService, trimmed
from rolecall.tensors.shard import binding, grouped
from rolecall.transport.codec import Received


def localize(value: Any) -> Any:
    """`value` with tensors in the place of handles; each owner is asked once, all at the same time.

    Raises:
        ShardNotFoundError: Shards were freed, or their owner is gone.
    """
    handles = _handles(value)
    return _replaced(value, handles, fetch(handles)) if handles else value


async def alocalize(value: Any) -> Any:
    """As `localize`, for a task."""
    handles = _handles(value)
    return _replaced(value, handles, await afetch(handles)) if handles else value


def localized(received: Received) -> Any:
    """The value that arrives, decoded with tensors in the places of handles. Errors as those of `localize`."""
    return received.value(fetch(received.references) if received.references else None)


async def alocalized(received: Received) -> Any:
    """As `localized`, for a task."""
    return received.value(await afetch(received.references) if received.references else None)


def remotize(value: Any, worker: Any = None) -> Any:
    """`value` with handles in the place of tensors, which stay in this worker or go to `worker`.

    Dicts with an attention mask lose their trailing padding first.

    Args:
        worker: In the controller: whom to give them to, `role[0]` for instance.

    Raises:
        TensorError: Not inside a worker, and none was named.
    """
    if worker is not None:
        lean = tree.map_leaves(lambda leaf: leaf, value, enter=trimmed)
        return getattr(worker, "peer", worker).request(PUT_VALUE.name, lean).result()
    service = binding.get()
    if not isinstance(service, DataService):
        raise TensorError("remotize outside a worker needs to know where to: rolecall.remotize(x, worker=...)")
    return service.remotize(value)


def clear(value: Any) -> int:
    """Frees the shards of all handles in `value` and returns their number; handles of them are of no use any more.

    It does not wait for the owners. Clearing twice does no harm.
    """
    shards = dict.fromkeys(shard for handle in _handles(value) for shard in handle.shards)
    for manager, group in grouped(shards, binding.of).items():
        manager.free(group)
    return len(shards)


def _handles(value: Any) -> list[RTensor]:
    return [leaf for leaf in tree.leaves(value) if isinstance(leaf, RTensor)]


def _replaced(value: Any, handles: Sequence[RTensor], tensors: Sequence[Any]) -> Any:
    found = dict(zip(map(id, handles), tensors, strict=True))
    return tree.map_leaves(lambda leaf: found.get(id(leaf), leaf), value)
