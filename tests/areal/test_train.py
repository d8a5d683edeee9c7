"""AReaL's PPOActorController over real workers: dispatch, broadcast, handles, forks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from areal.api import FinetuneSpec
from areal.api.cli_args import SchedulingSpec, SchedulingStrategy, TrainEngineConfig
from areal.infra.rpc.rtensor import RTensor
from areal.infra.scheduler.exceptions import EngineCallError, SchedulerError, WorkerNotFoundError
from areal.trainer.ppo.actor import PPOActorController

from rolecall.areal import RolecallScheduler
from tests.areal.train_engine import TableEngine
from tests.support.waiting import poll

SPEC = FinetuneSpec(total_train_epochs=1, dataset_size=64, train_batch_size=8)


def config(backend: str, **fields: Any) -> TrainEngineConfig:
    spec = SchedulingSpec(
        cpu=1, mem=1, container_type="none", cmd="python -m areal.infra.rpc.rpc_server", env_vars={"TABLE": "1"}
    )
    return TrainEngineConfig(
        backend=backend, scheduling_spec=(spec,), experiment_name="areal", trial_name="suite", **fields
    )


def trajectories(count: int) -> list[dict[str, torch.Tensor]]:
    """Trajectories of different lengths, with padding behind every second one."""
    made = []
    for i in range(count):
        length, padded = 4 + i, 4 + i + i % 2
        mask = (torch.arange(padded) < length)[None]
        ids = torch.full((1, padded), i % 32) * mask
        made.append({"input_ids": ids, "attention_mask": mask, "loss_mask": mask, "rewards": torch.tensor([float(i)])})
    return made


@pytest.fixture(scope="module")
def actor(scheduler: RolecallScheduler) -> Iterator[PPOActorController]:
    actor = PPOActorController(TableEngine, config("fsdp:d2t2"), scheduler)
    actor.initialize("actor", SPEC)
    yield actor
    actor.destroy()


def test_a_batch_is_dispatched_to_heads_broadcast_and_merged_in_order(actor: PPOActorController) -> None:
    """d2t2: each of the two heads gets half, its neighbour gets it by broadcast, results come as AReaL's handles."""
    assert [bool(head) for head in actor.workers_is_dp_head] == [True, False, True, False]
    result = actor.compute_logp(trajectories(8))
    assert all(isinstance(item, RTensor) and item.data.is_meta for item in result)
    assert [item.shape[1] for item in result] == [item["input_ids"].shape[1] for item in trajectories(8)]
    values = RTensor.localize(result)
    assert all(torch.allclose(value, torch.full_like(value, -torch.log(torch.tensor(32.0)))) for value in values)


def test_a_step_of_ppo_goes_round_by_handles_and_is_cleared(scheduler: RolecallScheduler, actor: Any) -> None:
    """Results are passed on as handles, trained on by every rank alike, and are gone after `clear_batches`."""
    batch = actor.compute_advantages(trajectories(8))
    assert all(isinstance(value, RTensor) for item in batch for value in item.values())
    assert batch[1]["input_ids"].shape[1] == 5  # the padding behind it did not stay on the worker
    before = actor._custom_function_call("norm")
    actor.ppo_update(batch)
    norms = [scheduler.call_engine(w.id, "norm", rpc_meta={"broadcast": False}) for w in actor.workers]
    assert norms[0] == actor._custom_function_call("norm") > before and norms[1] is None  # only heads answer
    local = RTensor.localize(batch)
    assert torch.equal(local[3]["rewards"], torch.tensor([3.0]))
    actor.clear_batches(batch)
    assert actor._custom_function_call("fetch_buffer_stats") == {"num_entries": 0}
    again = [{"rewards": RTensor(item["rewards"].shard, item["rewards"].data.to("meta"))} for item in batch]
    with pytest.raises(Exception, match="cleared"):
        RTensor.localize(again)


def test_what_is_not_serializable_fails_on_all_ranks_and_leaves_nobody_waiting(actor: Any) -> None:
    """The head's group waits in a broadcast: it is told that nothing comes, and the next call runs."""
    with pytest.raises(SchedulerError, match="functions and classes cannot be sent"):
        actor._custom_function_call("train", lambda: None)
    assert actor.get_version() == 0


def test_handles_that_are_gone_leave_nobody_waiting(actor: Any) -> None:
    """Each head tells its group in the turn of that call, so the next one runs, whichever head fails first."""
    batch = actor.compute_advantages(trajectories(8))
    actor.clear_batches(batch)

    def fails() -> bool:
        try:
            actor.ppo_update(batch)
        except SchedulerError as e:
            return "cleared" in str(e) or "no arguments" in str(e)
        return False

    assert poll(fails, 10.0)  # what frees does not wait
    for _ in range(5):
        assert fails() and actor.get_version() == 0


def test_a_forked_reference_has_ranks_and_a_group_of_its_own(scheduler: RolecallScheduler, actor: Any) -> None:
    """Colocated by a fork: further processes in the actor's slots; they end without it."""
    strategy = SchedulingStrategy(type="colocation", target="actor", fork=True)
    ref = PPOActorController(TableEngine, config("fsdp:d2t2", scheduling_strategy=strategy), scheduler)
    ref.initialize("ref", SPEC)
    try:
        assert [w.id for w in ref.workers] == [f"ref/{i}" for i in range(4)]
        batch = actor.compute_advantages(trajectories(6))
        ours, theirs = RTensor.localize(actor.compute_logp(batch)), RTensor.localize(ref.compute_logp(batch))
        assert all(a.shape == b.shape for a, b in zip(ours, theirs, strict=True))
    finally:
        ref.destroy()
    assert actor.get_version() == 0
    with pytest.raises(WorkerNotFoundError):
        scheduler.get_workers("ref")


def test_engines_colocated_without_a_fork_share_the_workers(scheduler: RolecallScheduler, actor: Any) -> None:
    """A second engine of another name in the actor's own processes, on the same engine thread."""
    strategy = SchedulingStrategy(type="colocation", target="actor", fork=False)
    critic = PPOActorController(TableEngine, config("fsdp:d2t2", scheduling_strategy=strategy), scheduler)
    critic.initialize("critic", SPEC)
    assert [w.id for w in critic.workers] == [w.id for w in actor.workers]
    critic.set_version(7)
    assert (critic.get_version(), actor.get_version()) == (7, 0)
    scheduler.delete_workers("critic")
    assert actor.get_version() == 0


def test_options_of_a_call_are_not_arguments_and_nothing_is_retried(scheduler: RolecallScheduler, actor: Any) -> None:
    """`http_timeout`, `max_retries`, `retry_delay` belong to the call; keys and tuples keep their types."""
    alone = {"broadcast": False}  # else it would wait for its group
    options: dict[str, Any] = {"http_timeout": 60, "max_retries": 3, "retry_delay": 0.1, "rpc_meta": alone}
    assert scheduler.call_engine("actor/0", "rank_of", **options) == (0, {2: "tensor parallel"})


def test_errors_are_areals_with_ours_as_their_cause(scheduler: RolecallScheduler, actor: Any) -> None:
    """By class and fields; the remote message and traceback are in the text."""
    with pytest.raises(EngineCallError, match="over here") as failed:
        actor._custom_function_call("fail", "over here")
    assert (failed.value.worker_id, failed.value.method) in [(f"actor/{i}", "fail") for i in range(4)]
    with pytest.raises(EngineCallError, match="no engine 'other'"):
        scheduler.call_engine("actor/0", "norm", "other")
    with pytest.raises(WorkerNotFoundError) as missing:
        scheduler.call_engine("nobody/0", "norm")
    assert missing.value.worker_id == "nobody"
    scheduler.delete_workers("nobody")  # a warning, as AReaL has it
