"""Random micro-batches, and what Liger's pure function makes of them: values and gradients of an independent author."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from liger_kernel.chunked_loss.grpo_loss import LigerFusedLinearGRPOFunction
from torch import Tensor

from rolecall.rl.tokens import Tokens

LENGTHS = [5, 1, 12, 7, 3, 9]


@dataclass
class Case:
    """A micro-batch, the same in rows of equal length, and the mask of what of them there is."""

    tokens: Tokens
    advantages: Tensor
    mask: Tensor

    def rows(self, values: Tensor) -> Tensor:
        """(tokens,) -> (sequences, longest), 0 where a row has ended."""
        return values.new_zeros(self.mask.shape).masked_scatter(self.mask.bool(), values)


def case(seed: int, lengths: Sequence[int] = LENGTHS, shift: float = 0.4) -> Case:
    """Log-probabilities in float64 that differ by about `shift` between policies, one advantage for each sequence."""
    generator = torch.Generator().manual_seed(seed)
    count = sum(lengths)
    sequence = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))

    def noise() -> Tensor:
        return torch.randn(count, generator=generator, dtype=torch.float64)

    logp = -noise().abs() - 0.1
    advantages = torch.randn(len(lengths), generator=generator, dtype=torch.float64)
    tokens = Tokens(
        logp=logp.requires_grad_(),
        prox=logp.detach() + shift * noise(),
        behave=logp.detach() + shift * noise(),
        ref=logp.detach() + shift * noise(),
        advantage=advantages[sequence],
        sequence=sequence,
        sequences=len(lengths),
    )
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).double()
    return Case(tokens, advantages, mask)


def gradient(loss: Callable[[Tokens], Tensor], tokens: Tokens) -> tuple[Tensor, Tensor]:
    """Value and gradient by `logp`."""
    leaf = tokens.logp.detach().clone().requires_grad_()
    value = loss(replace(tokens, logp=leaf))
    (found,) = torch.autograd.grad(value, leaf)
    return value.detach(), found


def ligers(found: Case, **settings: Any) -> tuple[Tensor, Tensor]:
    """The same of Liger's function."""
    settings = {"beta": 0.0, **settings}

    def loss(t: Tokens) -> Tensor:
        value, _ = LigerFusedLinearGRPOFunction.ppo_loss_fn(
            found.rows(t.logp),
            found.mask,
            found.advantages,
            found.mask,
            ref_per_token_logps=found.rows(t.need("ref")),
            old_per_token_logps=found.rows(t.proximal),
            **settings,
        )
        return torch.as_tensor(value)

    return gradient(loss, found.tokens)
