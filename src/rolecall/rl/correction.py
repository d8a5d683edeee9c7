"""Importance weights for tokens that other weights have sampled than the proximal policy's: w = pi_prox / pi_behave."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from rolecall.rl.tokens import Tokens

Kind = Literal["none", "tis", "mis", "icepop"]
Level = Literal["token", "sequence", "geometric"]


def weights(t: Tokens, kind: Kind, *, level: Level = "token", low: float = 0.0, high: float = 2.0) -> Tensor:
    """The weight of each token's loss, shape (tokens,), without gradient; 0 rejects it.

    Args:
        kind: `none`: 1 for all. `tis` (truncated): min(w, high). `mis` (masked): w, or 0 above `high`. `icepop`: w, or
            0 outside [low, high].
        level: What w is: of the `token`; of its whole `sequence`, the product of the tokens' ratios; `geometric`, their
            geometric mean.
        low, high: Bounds of w itself.

    Source: TIS, https://fengyao.notion.site/off-policy-rl; IcePop, https://ringtech.notion.site/icepop; levels as in
    verl.
    """
    log_ratio = (t.proximal - t.behave).detach()
    if kind == "none":
        return torch.ones_like(log_ratio)
    if level == "sequence":
        log_ratio = t.sum_of_sequence(log_ratio)
    elif level == "geometric":
        log_ratio = t.mean_of_sequence(log_ratio)
    ratio = log_ratio.exp()
    if kind == "tis":
        return ratio.clamp(max=high)
    return torch.where((ratio > high) | (ratio < (low if kind == "icepop" else 0.0)), 0.0, ratio)


def rejected(t: Tokens, weights: Tensor) -> Tensor:
    """Which sequences have no token left, shape (sequences,): their rewards must leave their group's baseline too."""
    kept = torch.zeros(t.sequences, dtype=torch.bool).to(weights.device)
    return ~kept.index_put((t.sequence[weights > 0],), torch.tensor(True).to(weights.device))
