"""Losses: from the tokens of a micro-batch to one value for each of them, shape (tokens,), to be minimised.

None of them divides or sums over tokens: `aggregation` does, once, by a count over the whole step, so a loss does not
depend on how a step is split. A loss of your own is such a function too.

GRPO, Dr. GRPO and DAPO are `ppo` with different advantages, bounds and aggregations; RLOO and REINFORCE++ are `ppo` or
`policy_gradient` with advantages of their names.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rolecall.rl.tokens import Tokens


def policy_gradient(t: Tokens) -> Tensor:
    """-A log pi: REINFORCE, for tokens that the weights in training have sampled themselves."""
    return -t.need("advantage") * t.logp


def ppo(t: Tokens, *, clip_low: float = 0.2, clip_high: float = 0.2, dual_clip: float | None = None) -> Tensor:
    """-min(r A, clip(r, 1 - clip_low, 1 + clip_high) A), where r = pi / pi_prox.

    Source: PPO, arXiv 1707.06347, eq. 7; a wider upper bound ("clip-higher"): DAPO, arXiv 2503.14476, eq. 10.

    Args:
        dual_clip: Bounds the loss of a token with A < 0 by -dual_clip A, at least 1; 3 is usual. arXiv 1912.09729, eq.
            5.
    """
    return _clipped(t.log_ratio.exp(), t.need("advantage"), clip_low, clip_high, dual_clip)


def gspo(t: Tokens, *, clip_low: float = 3e-4, clip_high: float = 4e-4) -> Tensor:
    """As `ppo` with the ratio of the whole sequence, to the power of one by its length, in the place of each token's.

    The gradient of each token is its own: sg(s) pi / sg(pi). Source: GSPO, arXiv 2507.18071, eq. 7 and 13.
    """
    of_sequence = t.mean_of_sequence(t.log_ratio.detach())
    ratio = (of_sequence + t.logp - t.logp.detach()).exp()
    return _clipped(ratio, t.need("advantage"), clip_low, clip_high, None)


def cispo(t: Tokens, *, ratio_min: float = 0.0, ratio_max: float = 5.0) -> Tensor:
    """-sg(clip(r, ratio_min, ratio_max)) A log pi: no token loses its gradient.

    Both bounds are of the ratio itself, not of its distance from 1. Source: MiniMax-M1, arXiv 2506.13585, eq. 4 and 5.
    """
    weight = t.log_ratio.detach().exp().clamp(ratio_min, ratio_max)
    return -weight * t.need("advantage") * t.logp


def sft(t: Tokens) -> Tensor:
    """-log pi: supervised fine-tuning on tokens that somebody else wrote."""
    return -t.logp


def value(t: Tokens, *, clip: float | None = 0.2) -> Tensor:
    """The critic's: half the squared error, or that of the value clipped to within `clip` of the old one if it is
    larger.

    Source: PPO's reference implementation (openai/baselines, ppo2).
    """
    now, goal = t.need("value"), t.need("returns")
    error = (now - goal).square()
    if clip is not None:
        old = t.need("old_value")
        error = torch.maximum(error, (old + (now - old).clamp(-clip, clip) - goal).square())
    return error / 2


def _clipped(ratio: Tensor, advantage: Tensor, low: float, high: float, dual: float | None) -> Tensor:
    gain = torch.minimum(ratio * advantage, ratio.clamp(1.0 - low, 1.0 + high) * advantage)
    if dual is not None:
        gain = torch.where(advantage < 0, torch.maximum(gain, dual * advantage), gain)
    return -gain


def log_linear_prox(logp: Tensor, behave: Tensor, *, trained: int, proximal: int, sampled: Tensor) -> Tensor:
    """Log-probabilities under the proximal policy without a pass over the model: between `behave` and `logp`.

    prox = behave + a (logp - behave), a = (v_prox - v_behave) / (v - v_behave); no gradient flows through it.
    Source: A-3PO, arXiv 2512.06547.

    Args:
        logp, behave: Shape (tokens,).
        trained: Version of the weights in training, v: one above `proximal` after the first update of a step.
        proximal: Version at the step's beginning, v_prox.
        sampled: Version that sampled each token, v_behave; shape (tokens,), integers, none above `proximal`.
    """
    share = (proximal - sampled) / (trained - sampled).clamp(min=1)
    return (behave + share * (logp - behave)).detach()
