"""The losses as values, worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from rolecall.demo import grpo

LOW, HIGH = 0.2, 0.28


def test_advantages_compare_an_answer_with_its_group_alone() -> None:
    """Mean 0 and deviation 1 within each group; a group that agrees gets nothing."""
    advantages = grpo.group_advantages(torch.tensor([0.0, 1.0, 0.2, 0.2, 1.0, 0.8]), group=2, eps=0.0)
    assert advantages[:2].tolist() == [-1.0, 1.0]
    assert torch.allclose(advantages[4:], torch.tensor([1.0, -1.0]))
    agreed = grpo.group_advantages(torch.tensor([0.2, 0.2, 0.2]), group=3)
    assert torch.allclose(agreed, torch.zeros(3), atol=1e-3)


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected"),
    [
        (1.1, 1.0, 1.1),
        (1.5, 1.0, 1.0 + HIGH),  # no more is gained by making a good token likelier still
        (0.5, 1.0, 0.5),
        (0.5, -1.0, -(1.0 - LOW)),  # nor by making a bad one rarer still
        (1.5, -1.0, -1.5),
    ],
)
def test_the_objective_is_clipped_on_the_side_of_the_gain(ratio: float, advantage: float, expected: float) -> None:
    """The bounds are 0.8 and 1.28, and hold only where they make the objective smaller."""
    got = grpo.clipped_objective(torch.tensor([[ratio]]), torch.tensor([advantage]), LOW, HIGH)
    assert got.item() == pytest.approx(expected)


def test_the_masked_mean_counts_marked_tokens_only() -> None:
    """All tokens of the batch weigh the same; nothing marked is 0, not NaN."""
    values, mask = torch.tensor([[1.0, 9.0], [3.0, 5.0]]), torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    assert grpo.masked_mean(values, mask).item() == pytest.approx(3.0)
    assert grpo.masked_mean(values, torch.zeros(2, 2)).item() == 0.0


def test_k3_estimates_the_divergence() -> None:
    """Zero where both agree, never negative, and its mean over the policy's samples is the true divergence."""
    policy, reference = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.3, 0.3, 0.4])
    estimate = grpo.k3_divergence(policy.log(), reference.log())
    assert (estimate >= 0).all()
    assert (policy * estimate).sum().item() == pytest.approx(
        (policy * (policy / reference).log()).sum().item(), rel=1e-5
    )
    assert grpo.k3_divergence(policy.log(), policy.log()).abs().max() == 0.0


def test_token_logprobs_belong_to_the_token_that_follows() -> None:
    """Row t of the logits is read at token t + 1."""
    logits = torch.log(torch.tensor([[[0.5, 0.5], [0.9, 0.1]]]))
    got = grpo.token_logprobs(logits, torch.tensor([[0, 1, 0]]))
    assert got.exp().tolist() == [pytest.approx([0.5, 0.9])]


def test_the_loss_is_minus_the_gain_plus_the_weighted_distance() -> None:
    """At the sampling policy the ratio is 1: advantages of mean 0 leave the distance alone, nothing is clipped."""
    logprobs = torch.full((2, 3), math.log(0.5), requires_grad=True)
    reference = torch.full((2, 3), math.log(0.25))
    loss = grpo.grpo_loss(
        logprobs,
        logprobs.detach(),
        reference,
        torch.tensor([1.0, -1.0]),
        torch.ones(2, 3),
        clip_low=LOW,
        clip_high=HIGH,
        kl_weight=0.5,
    )
    distance = 0.5 - math.log(0.5) - 1.0
    assert loss.kl.item() == pytest.approx(distance)
    assert loss.total.item() == pytest.approx(0.5 * distance)
    assert loss.clipped.item() == 0.0
    loss.total.backward()
    assert logprobs.grad is not None
    assert (logprobs.grad[0] < logprobs.grad[1]).all()
