"""AReaL's RolloutController over real workers: workflows, forked evaluation, weights by disk, an agent and proxies."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from areal.api import FinetuneSpec, ModelRequest, WeightUpdateMeta
from areal.api.cli_args import (
    AgentConfig,
    GenerationHyperparameters,
    InferenceEngineConfig,
    SchedulingSpec,
    SchedulingStrategy,
    TrainEngineConfig,
)
from areal.infra import RolloutController
from areal.infra.rpc.rtensor import RTensor
from areal.trainer.ppo.actor import PPOActorController

from rolecall.areal import RolecallScheduler
from tests.areal.rollout_engine import Guess, Talker, TokenEngine
from tests.areal.tokenizer import saved_tokenizer
from tests.areal.train_engine import TableEngine
from tests.support.schedulers_under_test import each

NAMES: dict[str, Any] = {"experiment_name": "areal", "trial_name": "suite"}
SPEC = SchedulingSpec(cpu=1, mem=2, container_type="none", cmd="python -m areal.infra.rpc.rpc_server")


def config(folder: Path, **fields: Any) -> InferenceEngineConfig:
    agent = AgentConfig(agent_cls_path="unused", mode="inline", admin_api_key="a key of the tests")
    return InferenceEngineConfig(
        backend="vllm:d2",
        consumer_batch_size=8,
        max_head_offpolicyness=8,
        scheduling_spec=(SPEC,),
        setup_timeout=60,
        request_timeout=60,
        agent=agent,
        tokenizer_path=str(saved_tokenizer(folder / "tokenizer")),
        fileroot=str(folder),
        **NAMES,
        **fields,
    )


@pytest.fixture(scope="module")
def rollout(scheduler: RolecallScheduler, folder: Path) -> Iterator[RolloutController]:
    rollout = RolloutController(TokenEngine, config(folder), scheduler)
    rollout.initialize("rollout", server_args={})
    yield rollout
    rollout.destroy()


def prompts(count: int) -> list[dict[str, Any]]:
    return [{"prompt": i} for i in range(count)]


def test_a_batch_is_rolled_out_and_rejected_samples_are_left_out(rollout: RolloutController) -> None:
    """Each trajectory stays on the worker that made it, and comes as AReaL's handles."""
    data = [*prompts(6), {"reject": True}]
    batch = rollout.rollout_batch(data, workflow=Guess, workflow_kwargs={"token": 3})
    assert len(batch) == 6 and all(isinstance(value, RTensor) for item in batch for value in item.values())
    local = RTensor.localize(batch)
    assert {int(item["input_ids"][0, 0]) for item in local} == set(range(6))
    assert all(item["input_ids"].shape == (1, 9) for item in local)
    assert {shard for item in batch for shard in RTensor.collect_shards(item)} == {"rollout/0", "rollout/1"}
    asyncio.run(RTensor.clear_node("rollout/0", []))


def test_groups_and_versions_reach_every_worker(rollout: RolloutController) -> None:
    """`group_size` runs a workflow as often; every token bears the version that made it."""
    rollout.set_version(2)
    batch = RTensor.localize(rollout.rollout_batch(prompts(2), Guess, {"token": 3}, group_size=3))
    assert [item["input_ids"].shape[0] for item in batch] == [3, 3]
    assert all((item["versions"][:, 3:] == 2).all() for item in batch)
    rollout.pause()
    rollout.resume()


def test_a_coroutine_method_is_called_beside_the_engine_thread(rollout: RolloutController) -> None:
    """`agenerate`: an answer with its tokens, log-probabilities and versions."""
    request = ModelRequest(input_ids=[1, 2], gconfig=GenerationHyperparameters(max_new_tokens=4))
    answer = asyncio.run(rollout.agenerate(request))
    assert (answer.input_tokens, answer.output_len, len(answer.output_logprobs)) == ([1, 2], 4, 4)


def test_evaluation_runs_in_processes_forked_beside_the_rollout(rollout: RolloutController, folder: Path) -> None:
    """`eval-rollout`: workers of its own in the same slots, asking the same servers."""
    strategy = SchedulingStrategy(type="colocation", target="rollout", fork=True)
    evaluation = RolloutController(TokenEngine, config(folder, scheduling_strategy=strategy), rollout.scheduler)
    evaluation.initialize("eval-rollout", server_args={}, server_infos=rollout.server_infos)
    for item in prompts(4):
        evaluation.submit(item, Guess, {"token": 3}, is_eval=True)
    assert len(evaluation.wait(4, timeout=60)) == 4
    evaluation.destroy()
    assert len(rollout.rollout_batch(prompts(2), Guess, {"token": 3})) == 2


def test_weights_go_over_the_disk_to_every_server(rollout: RolloutController, folder: Path) -> None:
    """The trained table is what the servers sample from: trained towards one token, they give that token."""
    train = TrainEngineConfig(backend="fsdp:d1", scheduling_spec=(SPEC,), **NAMES)
    actor = PPOActorController(TableEngine, train, rollout.scheduler)
    actor.initialize("actor", FinetuneSpec(total_train_epochs=1, dataset_size=64, train_batch_size=8))
    meta = WeightUpdateMeta(type="disk", path=str(folder / "weights"))
    actor.connect_engine(rollout, meta)
    mask = torch.ones(1, 4, dtype=torch.bool)
    for _ in range(100):
        actor.ppo_update([{"input_ids": torch.full((1, 4), 3), "loss_mask": mask, "advantages": torch.ones(1, 4)}])
    actor.set_version(rollout.get_version())
    rollout.pause()
    actor.update_weights(meta.with_version(3))
    rollout.resume()
    rewards = [item["rewards"] for item in RTensor.localize(rollout.rollout_batch(prompts(8), Guess, {"token": 3}))]
    assert torch.cat(rewards).mean() > 0.9
    actor.destroy()


@pytest.mark.parametrize("backend", each(["local"]), indirect=True, scope="module")
def test_an_agent_talks_to_proxies_forked_beside_the_rollout(rollout: RolloutController) -> None:
    """AReaL's own proxy module, started with its arguments, asked over HTTP, its sessions trained on as tokens.

    The contract of forks shows on every backend that a module is started so; this one takes seconds to be imported.
    """
    rollout.start_proxy()
    try:
        assert [w.id for w in rollout.proxy_workers] == ["proxy-rollout/0", "proxy-rollout/1"]
        rollout.set_version(5)
        local = RTensor.localize(rollout.rollout_batch([{"say": "t1 t2"}] * 4, Talker, {}))
        assert len(local) == 4 and all((item["rewards"] == 1).all() for item in local)
        assert all(int(item["loss_mask"].sum()) == 5 for item in local)
    finally:
        rollout.scheduler.delete_workers("proxy-rollout")
