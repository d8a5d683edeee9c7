"""AReaL's handles over rolecall's: what stays on a worker, how it is fetched and freed, and how both are sent.

An AReaL `RTensor` keeps its id, which is the handle of rolecall beside it, so a shard lives as long as something refers
to it, and AReaL's `clear_batches` frees it earlier. Handles of AReaL's own HTTP servers are left to AReaL.
"""

from __future__ import annotations

from collections.abc import Sequence
from subprocess import Popen
from typing import Any

import torch
from areal.infra.rpc.rtensor import HttpRTensorBackend, RTensor, TensorShardInfo, set_backend
from areal.infra.rpc.serialization import deserialize_value, serialize_value
from PIL.Image import Image
from transformers import PreTrainedTokenizerBase, ProcessorMixin

import rolecall

# What only AReaL knows how to send, with all that derive from it.
FAMILIES = {PreTrainedTokenizerBase: 3, ProcessorMixin: 4, Image: 5, Popen: 6}


class ShardId(str):
    """The id of a shard, as AReaL keeps it, with the handle that keeps the shard."""

    handle: rolecall.RTensor

    @classmethod
    def of(cls, handle: rolecall.RTensor) -> ShardId:
        shards = handle.shards
        new = cls(shards[0].id if shards else f"empty {handle.dtype_name} {handle.shape}")
        new.handle = handle
        return new


class Backend:
    """What AReaL's `RTensor` asks for tensors, in the controller and in workers."""

    def __init__(self) -> None:
        self._http = HttpRTensorBackend()

    def store(self, tensor: torch.Tensor) -> ShardId:
        return ShardId.of(rolecall.remotize(tensor))

    def fetch(self, shards: Sequence[TensorShardInfo]) -> list[torch.Tensor]:
        ids = [shard.shard_id for shard in shards]
        own = iter(rolecall.localize([i.handle for i in ids if isinstance(i, ShardId)]))
        foreign = iter(self._http.fetch([s for s in shards if not isinstance(s.shard_id, ShardId)]))
        return [next(own if isinstance(i, ShardId) else foreign) for i in ids]

    async def delete(self, node_addr: str, shard_ids: Sequence[Any]) -> None:
        rolecall.clear([i.handle for i in shard_ids if isinstance(i, ShardId)])
        if foreign := [i for i in shard_ids if not isinstance(i, ShardId)]:
            await self._http.delete(node_addr, foreign)


def install() -> None:
    """Teaches this process AReaL's types, and AReaL where tensors are."""
    set_backend(Backend())
    rolecall.register_type(1, RTensor, _sent, _received)
    rolecall.register_type(2, ShardId, str, str)
    for cls, code in FAMILIES.items():
        rolecall.register_type(code, cls, serialize_value, deserialize_value, subclasses=True)


def _sent(value: RTensor) -> Any:
    """A handle of ours arrives in a worker as its tensor."""
    shard_id = value.shard.shard_id
    if isinstance(shard_id, ShardId):
        return shard_id.handle
    return [shard_id, value.shard.node_addr, list(value.shape), value.dtype]


def _received(plain: Any) -> Any:
    if isinstance(plain, torch.Tensor):
        return plain
    if isinstance(plain, rolecall.RTensor):
        owner = plain.shards[0].owner if plain.shards else ""
        shard, shape, dtype = TensorShardInfo(ShardId.of(plain), owner), plain.shape, plain.dtype
    else:
        shard, (shape, dtype) = TensorShardInfo(*plain[:2]), plain[2:]
    return RTensor(shard=shard, data=torch.empty(shape, dtype=dtype, device="meta"))
