"""Engines that do what the answers of AReaL's mock scheduler say."""

from __future__ import annotations

from typing import Any

import requests
import torch
from areal.api import LocalInfServerInfo, ModelResponse

from tests.areal.train_engine import TableEngine


class OwnTrainEngine(TableEngine):
    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.version = 1

    def train_lm(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        return {"lm_loss": 0.4, "perplexity": 1.5}

    def evaluate_lm(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        return {"eval_loss": 0.35}

    def ppo_update(self, *args: Any, **kwargs: Any) -> None: ...

    def step_lr_scheduler(self) -> None: ...

    def load(self, meta: Any) -> None: ...

    def save(self, meta: Any) -> None: ...


class AnsweringEngine:
    """A rollout engine whose tasks are done when they are submitted."""

    def __init__(self, config: Any) -> None:
        self.done, self.version = dict[int, Any](), 0

    def initialize(self, **kwargs: Any) -> None: ...

    def launch_server(self, server_args: Any) -> LocalInfServerInfo:
        return LocalInfServerInfo("127.0.0.1", 1, None)

    def submit(self, task_id: int, callback_addr: str, **kwargs: Any) -> int:
        half = [[0] * 5 + [1] * 5]
        self.done[task_id] = {
            "input_ids": torch.randint(0, 100, (1, 10)),
            "attention_mask": torch.ones(1, 10, dtype=torch.bool),
            "loss_mask": torch.tensor(half, dtype=torch.bool),
            "rewards": torch.randn(1),
        }
        requests.post(callback_addr, json={"task_id": task_id}, timeout=30).raise_for_status()
        return task_id

    def wait_for_task(self, task_id: int, **kwargs: Any) -> Any:
        return self.done.pop(task_id, None)

    async def agenerate(self, req: Any) -> ModelResponse:
        return ModelResponse(input_tokens=list(req.input_ids), output_tokens=[1])

    def set_version(self, version: int) -> None:
        self.version = version

    def pause(self) -> None: ...
    def resume(self) -> None: ...
    def destroy(self) -> None: ...
    def export_stats(self) -> dict[str, float]:
        return {}

    def init_weights_update_group(self, **kwargs: Any) -> None: ...
    def update_weights_from_distributed(self, **kwargs: Any) -> None: ...
    def update_weights_from_disk(self, **kwargs: Any) -> None: ...
    def pause_generation(self) -> None: ...
    def continue_generation(self) -> None: ...
    def save_perf_tracer(self, **kwargs: Any) -> None: ...
    def offload(self, **kwargs: Any) -> None: ...
    def onload(self, **kwargs: Any) -> None: ...
    def test_method(self, *args: Any, **kwargs: Any) -> None: ...
