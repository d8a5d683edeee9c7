"""The engines in one process, without the runtime."""

from __future__ import annotations

import pytest
import torch

from rolecall.demo import task
from rolecall.demo.engines import Actor, Reference, Rollout
from rolecall.demo.model import FlatModel, sample
from rolecall.demo.options import Recipe

pytestmark = pytest.mark.slow("the import of transformers")

RECIPE = Recipe(hidden=16, heads=2, prompts=4, group=4, eval_prompts=8)


def test_the_flat_vector_is_the_model() -> None:
    """Writing the vector changes the predictions, and a backward pass fills its gradient."""
    one, other = FlatModel(RECIPE), FlatModel(Recipe(seed=1, hidden=16, heads=2))
    tokens = torch.randint(0, task.VOCAB_SIZE, (2, task.LENGTH), generator=torch.Generator().manual_seed(0))
    assert not torch.equal(one.logits(tokens), other.logits(tokens))
    other.load(one.flat.detach())
    assert torch.equal(one.logits(tokens), other.logits(tokens))
    one.logits(tokens).square().sum().backward()
    assert one.flat.grad is not None
    assert one.flat.grad.abs().sum() > 0


def test_the_cache_samples_what_the_whole_sequence_predicts() -> None:
    """Log-probabilities noted while sampling are those that the trainer computes from the finished sequence."""
    rollout, reference = Rollout(RECIPE), Reference(RECIPE)
    batch = rollout.generate(seed=5, prompts=3)
    again = reference.logprobs(batch["tokens"]) * batch["mask"]
    assert torch.allclose(batch["logprobs"], again, atol=1e-4)
    assert batch["logprobs"][:, : task.PROMPT_LENGTH - 1].abs().max() == 0.0


def test_a_group_shares_its_prompt() -> None:
    """The answers to a prompt lie side by side, in the order of the prompts."""
    prompts = task.draw_prompts(3, torch.Generator().manual_seed(1))
    tokens, _ = sample(FlatModel(RECIPE).model, prompts, 4, torch.Generator().manual_seed(2))
    assert torch.equal(tokens[:, : task.PROMPT_LENGTH], prompts.repeat_interleave(4, dim=0))


def test_generation_depends_on_seed_and_weights_alone() -> None:
    """Two workers given the same seed make the same batch; another seed makes another."""
    one, other = Rollout(RECIPE), Rollout(RECIPE)
    assert torch.equal(one.generate(7, 2)["tokens"], other.generate(7, 2)["tokens"])
    assert not torch.equal(one.generate(7, 2)["tokens"], one.generate(8, 2)["tokens"])


def test_a_step_moves_the_policy_and_the_rollout_follows() -> None:
    """Training changes the weights, leaves those handed out before alone, and gives finite numbers."""
    actor, rollout, reference = Actor(RECIPE), Rollout(RECIPE), Reference(RECIPE)
    before = actor.weights()
    batch = rollout.generate(seed=1, prompts=4)
    stats = actor.train({**batch, "reference": reference.logprobs(batch["tokens"])})
    assert all(torch.tensor(list(stats.values())).isfinite())
    assert torch.equal(before, Actor(RECIPE).weights())
    assert not torch.equal(before, actor.weights())
    rollout.load(actor.weights(), version=1)
    assert rollout.generate(seed=1, prompts=4)["version"] == 1
    assert torch.equal(rollout.policy.flat.detach(), actor.weights())


def test_the_parts_of_the_evaluation_set_make_the_whole() -> None:
    """The mean over the parts is the reward of the whole set, for any number of parts that divides it."""
    rollout = Rollout(RECIPE)
    whole = rollout.evaluate(0, 1)
    halves = [rollout.evaluate(part, 2) for part in range(2)]
    assert abs(whole["reward"] - sum(half["reward"] for half in halves) / 2) < 1e-6


@pytest.mark.slow("a model learns")
def test_the_engines_learn_in_one_process() -> None:
    """Forty steps take the untrained model's one in sixteen well past what guessing digits would give."""
    recipe = Recipe()
    actor, rollout, reference = Actor(recipe), Rollout(recipe), Reference(recipe)
    before = rollout.evaluate(0, 1)["reward"]
    for step in range(40):
        batch = rollout.generate(seed=step, prompts=recipe.prompts)
        actor.train({**batch, "reference": reference.logprobs(batch["tokens"])})
        rollout.load(actor.weights(), version=step + 1)
    assert before < 0.15
    assert rollout.evaluate(0, 1)["reward"] > 0.25
