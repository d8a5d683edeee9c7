"""From a value for each token to the step's loss. The one place that divides, by counts over the whole step.

The loss of a step is the sum over micro-batches and ranks of what `total` returns for each of them, whatever their
number and sizes: gradients are added up, never averaged.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from rolecall.rl.tokens import Tokens

Aggregation = Literal["token_mean", "sequence_mean_token_mean", "sequence_mean_token_sum", "token_sum"]


@dataclass(frozen=True)
class Counts:
    """What a whole step holds, over all micro-batches and ranks.

    Attributes:
        tokens: Tokens that are trained on.
        sequences: Sequences.
    """

    tokens: int
    sequences: int


def total(values: Tensor, t: Tokens, aggregation: Aggregation, counts: Counts, *, constant: float = 1.0) -> Tensor:
    """This micro-batch's part of the step's loss, a tensor without dimensions. No tokens: 0, with a gradient of 0.

    Args:
        values: Of each token, shape (tokens,).
        aggregation: `token_mean`: all tokens of the step weigh the same (DAPO). `sequence_mean_token_mean`: all
            sequences do (GRPO). `sequence_mean_token_sum`: tokens are added, divided by `constant`, sequences averaged
            (Dr. GRPO, whose constant is the longest length allowed). `token_sum`: nothing is divided.
        counts: Of the whole step.
        constant: See above.
    """
    match aggregation:
        case "token_mean":
            return values.sum() / max(1, counts.tokens)
        case "sequence_mean_token_mean":
            means = torch.as_tensor(1.0 / t.lengths[t.sequence])
            return (values * means.to(values)).sum() / max(1, counts.sequences)
        case "sequence_mean_token_sum":
            return values.sum() / (max(1, counts.sequences) * constant)
        case "token_sum":
            return values.sum()
