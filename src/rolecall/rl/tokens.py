"""The tokens of a micro-batch as losses see them: one dimension, one sequence after the other, no padding.

What stands here and in `losses`, `advantages`, `correction` and `aggregation` takes values and returns values: no
model, optimizer or process.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """Tokens that are trained on, those that the policy wrote, and what is known of each.

    All tensors have shape (tokens,). Gradients flow through `logp` and `value` alone.

    Attributes:
        logp: Log-probability under the weights in training, in nats.
        behave: Under the weights that sampled the token.
        advantage: How much better than expected; see `advantages`. None where a loss needs none.
        sequence: Which sequence of the micro-batch the token belongs to: 0, 1, ..., in order.
        sequences: How many there are, those without a token here included.
        prox: Log-probability under the proximal policy, from which the ratio is clipped. `behave` where None.
        ref: Under the reference model. None where no KL divergence is asked for.
        value: What the critic in training expects of the return.
        old_value: What it expected before the step.
        returns: What the critic is to learn.
    """

    logp: Tensor
    behave: Tensor
    sequence: Tensor
    sequences: int
    advantage: Tensor | None = None
    prox: Tensor | None = None
    ref: Tensor | None = None
    value: Tensor | None = None
    old_value: Tensor | None = None
    returns: Tensor | None = None

    def need(self, name: str) -> Tensor:
        """The tensor of that name.

        Raises:
            ValueError: The micro-batch has none.
        """
        found = getattr(self, name)
        if found is None:
            raise ValueError(f"the loss needs `{name}` of every token, and this micro-batch has none")
        return torch.as_tensor(found)

    @property
    def proximal(self) -> Tensor:
        """Log-probability under the policy from which the ratio is clipped."""
        return self.behave if self.prox is None else self.prox

    @property
    def log_ratio(self) -> Tensor:
        """log(pi / pi_prox) of each token; its gradient is that of `logp`."""
        return self.logp - self.proximal

    @property
    def lengths(self) -> Tensor:
        """Tokens of each sequence, shape (sequences,)."""
        return torch.bincount(self.sequence, minlength=self.sequences)

    def sum_of_sequence(self, values: Tensor) -> Tensor:
        """For each token the sum over its sequence: (tokens,) -> (tokens,)."""
        return values.new_zeros(self.sequences).index_add(0, self.sequence, values)[self.sequence]

    def mean_of_sequence(self, values: Tensor) -> Tensor:
        """For each token the mean over its sequence: (tokens,) -> (tokens,)."""
        return self.sum_of_sequence(values) / self.lengths[self.sequence]
