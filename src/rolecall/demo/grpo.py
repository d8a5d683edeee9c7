"""Group relative policy optimisation as pure functions over tensors. No model, no optimizer, no process.

Shapes: `batch` sequences of `length` tokens have `length - 1` predictions; all of logprobs, reference and mask are
(batch, length - 1), rewards and advantages (batch,).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


def token_logprobs(logits: Tensor, tokens: Tensor) -> Tensor:
    """Log-probabilities of the tokens that follow.

    Args:
        logits: Shape (batch, length - 1, vocabulary), row t predicting token t + 1.
        tokens: Shape (batch, length).

    Returns:
        Shape (batch, length - 1).
    """
    chosen = tokens[:, 1:].unsqueeze(-1)
    return logits.log_softmax(dim=-1).gather(-1, chosen).squeeze(-1)


def group_advantages(rewards: Tensor, group: int, eps: float = 1e-4) -> Tensor:
    """Advantages relative to the group of answers to the same prompt: (r - mean) / (std + eps).

    Source: DeepSeekMath, arXiv 2402.03300, section 4.1.2 (outcome supervision).

    Args:
        rewards: Shape (prompts * group,), the answers of a prompt side by side.
        group: Answers per prompt.
        eps: Keeps a group whose rewards are all equal at advantage 0.

    Returns:
        Shape (prompts * group,), mean 0 in every group.
    """
    grouped = rewards.view(-1, group)
    centred = grouped - grouped.mean(dim=1, keepdim=True)
    return (centred / (grouped.std(dim=1, keepdim=True, correction=0) + eps)).flatten()


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over the unmasked tokens of the whole batch, each of equal weight (DAPO, arXiv 2503.14476, eq. 12)."""
    return (values * mask).sum() / mask.sum().clamp(min=1.0)


def clipped_objective(ratio: Tensor, advantages: Tensor, clip_low: float, clip_high: float) -> Tensor:
    """The surrogate to be maximised, per token: min(ratio * A, clip(ratio, 1 - clip_low, 1 + clip_high) * A).

    Source: PPO, arXiv 1707.06347, eq. 7; the wider upper bound is DAPO's "clip-higher", arXiv 2503.14476, eq. 10.

    Args:
        ratio: Probability now over probability when sampled, shape (batch, length - 1).
        advantages: Shape (batch,).
        clip_low: Width of the bound below 1.
        clip_high: Width of the bound above 1.
    """
    advantages = advantages.unsqueeze(-1)
    return torch.minimum(ratio * advantages, ratio.clamp(1.0 - clip_low, 1.0 + clip_high) * advantages)


def k3_divergence(logprobs: Tensor, reference: Tensor) -> Tensor:
    """Estimates KL(policy || reference) per token the policy sampled: exp(d) - d - 1 with d = reference - logprobs.

    Unbiased, never negative, of low variance. Source: J. Schulman, "Approximating KL Divergence", estimator k3.
    """
    difference = reference - logprobs
    return difference.exp() - difference - 1.0


@dataclass(frozen=True)
class Loss:
    """The loss to minimise and the statistics beside it. All are tensors without dimensions (scalars)."""

    total: Tensor
    kl: Tensor
    clipped: Tensor
    """Share of the tokens whose ratio lies outside the bounds."""


def grpo_loss(
    logprobs: Tensor,
    sampled: Tensor,
    reference: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    clip_low: float,
    clip_high: float,
    kl_weight: float,
) -> Loss:
    """Loss of a batch: minus the clipped objective, plus the weighted KL divergence from the reference.

    Args:
        logprobs: Logprobs from the model in training; the gradient flows through these alone.
        sampled: Logprobs from the model that sampled the tokens.
        reference: Logprobs from the reference model.
        advantages: See `group_advantages`.
        mask: 1.0 where the policy chose the token, else 0.0.
        clip_low: See `clipped_objective`.
        clip_high: See `clipped_objective`.
        kl_weight: Weight of the KL divergence.
    """
    ratio = (logprobs - sampled).exp()
    gain = masked_mean(clipped_objective(ratio, advantages, clip_low, clip_high), mask)
    kl = masked_mean(k3_divergence(logprobs, reference), mask)
    outside = (ratio < 1.0 - clip_low) | (ratio > 1.0 + clip_high)
    return Loss(kl_weight * kl - gain, kl.detach(), masked_mean(outside.float(), mask))
