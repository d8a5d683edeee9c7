"""A training engine of AReaL that needs no GPU: a table of logits, trained data-parallel over gloo."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from areal.api import TrainEngine
from areal.infra.rpc.rtensor import clear_fetch_buffer, fetch_buffer_stats
from areal.utils import name_resolve, names

VOCABULARY = 32


class TableEngine(TrainEngine):
    """Ranks in the order of AReaL's engines: data-parallel groups of `tp` neighbours each."""

    def __init__(self, config: Any) -> None:
        self.config, self.version, self.ready, self.seen = config, 0, False, list[Any]()
        self.own_global_group = False

    def create_process_group(self, parallel_strategy: Any = None) -> None:
        world = int(os.environ["WORLD_SIZE"])
        if not dist.is_initialized():
            dist.init_process_group("gloo", rank=int(os.environ["RANK"]), world_size=world)
            self.own_global_group = True
        self.tp = parallel_strategy.tensor_parallel_size
        heads = range(0, world, self.tp)
        groups = [dist.new_group(list(range(head, head + self.tp))) for head in heads]
        self.model_group, self.head = groups[dist.get_rank() // self.tp], dist.get_rank() // self.tp * self.tp
        self.data_groups = [dist.new_group(list(range(i, world, self.tp))) for i in range(self.tp)]

    def initialize(self, ft_spec: Any = None, **kwargs: Any) -> None:
        self.table = torch.zeros(VOCABULARY, requires_grad=True)
        self.ready = True

    @property
    def initialized(self) -> bool:
        return self.ready

    @property
    def context_and_model_parallel_group(self) -> Any:
        return self.model_group

    @property
    def data_parallel_group(self) -> Any:
        return self.data_groups[dist.get_rank() % self.tp]

    def current_data_parallel_head(self) -> int:
        return int(self.head)

    def is_data_parallel_head(self) -> bool:
        return bool(dist.get_rank() == self.head)

    def compute_logp(self, batch: list[dict[str, torch.Tensor]]) -> list[torch.Tensor]:
        self.seen.append([item["input_ids"].shape for item in batch])
        logp = torch.log_softmax(self.table.detach(), -1)
        return [logp[item["input_ids"]] for item in batch]

    def compute_advantages(self, batch: list[dict[str, torch.Tensor]]) -> list[dict[str, torch.Tensor]]:
        return [item | {"advantages": item["rewards"][:, None].expand_as(item["input_ids"]).clone()} for item in batch]

    def ppo_update(self, batch: list[dict[str, torch.Tensor]]) -> None:
        logp = torch.log_softmax(self.table, -1)
        loss = -sum((logp[item["input_ids"]] * item["advantages"] * item["loss_mask"]).sum() for item in batch)
        self.table.grad = None
        loss.backward()
        dist.all_reduce(self.table.grad, group=self.data_parallel_group)
        with torch.no_grad():
            self.table -= 0.1 * self.table.grad / max(1, self.table.grad.norm().item())

    def seen_shapes(self) -> list[Any]:
        return self.seen

    def norm(self) -> float:
        return float(self.table.detach().norm())

    def rank_of(self) -> tuple[int, dict[int, str]]:
        return dist.get_rank(), {self.tp: "tensor parallel"}

    def train(self, mode: bool = True) -> None: ...

    def set_version(self, version: int) -> None:
        self.version = version

    def get_version(self) -> int:
        return self.version

    def connect_engine(self, engine: Any, meta: Any) -> None:
        self.rollout = engine

    def update_weights(self, meta: Any) -> None:
        """As AReaL's FSDP engine does it over a disk."""
        if dist.get_rank() == 0:
            self.rollout.pause_generation()
            loaded = self.rollout.update_weights_from_disk(meta)
            Path(meta.path).mkdir(parents=True, exist_ok=True)
            (Path(meta.path) / "table.json").write_text(json.dumps(self.table.tolist()))
            update = names.update_weights_from_disk(self.config.experiment_name, self.config.trial_name, self.version)
            name_resolve.add(update, str(time.time()), replace=True)
            loaded.result()
            self.rollout.continue_generation()
        dist.barrier()

    def save(self, meta: Any) -> None:
        if dist.get_rank() == 0:
            torch.save(self.table.detach(), meta.path)

    def export_stats(self) -> dict[str, float]:
        return {"norm": self.norm()}

    def clear_batches(self, ids: list[str] | None = None) -> None:
        clear_fetch_buffer(ids)

    def fetch_buffer_stats(self) -> dict[str, int]:
        return dict(fetch_buffer_stats())

    def fail(self, message: str) -> None:
        raise RuntimeError(message)

    def destroy(self) -> None:
        self.ready = False
        if dist.is_initialized() and self.own_global_group:  # as AReaL's engines do
            dist.destroy_process_group()


TableEngine.__abstractmethods__ = frozenset()  # what the tests' controllers never call
