"""Advantages: how much better than expected an answer, or a token of it, was.

Those of a group take the rewards of the answers to one prompt; None is an answer that failed, was rejected or could
not be scored: it gets None, and is no part of the others' baseline. From `discounted` on they are per token.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Sequence

Rewards = Sequence[float | None]
Advantages = list[float | None]


def _of_group(rewards: Rewards, advantages: Callable[[list[float]], list[float]]) -> Advantages:
    known = [reward for reward in rewards if reward is not None]
    # Exactly 0 for those who agree: their mean is rounded, and a deviation of nearly 0 would blow up what is left.
    left = iter(advantages(known) if has_signal(known) else [0.0] * len(known))
    return [None if reward is None else next(left) for reward in rewards]


def centred(rewards: Rewards) -> Advantages:
    """R - mean: Dr. GRPO, arXiv 2503.20783, eq. 3. A group of one gets 0."""
    return _of_group(rewards, lambda known: [reward - statistics.fmean(known) for reward in known])


def grpo(rewards: Rewards, *, epsilon: float = 1e-4) -> Advantages:
    """(R - mean) / (std + epsilon), std with n - 1 as TRL's. A group of one, or one that agrees, gets 0.

    Source: DeepSeekMath, arXiv 2402.03300, section 4.1.2.
    """

    def advantages(known: list[float]) -> list[float]:
        mean, deviation = statistics.fmean(known), statistics.stdev(known)
        return [(reward - mean) / (deviation + epsilon) for reward in known]

    return _of_group(rewards, advantages)


def rloo(rewards: Rewards) -> Advantages:
    """R - the mean of the group's others: arXiv 2402.14740, eq. 3. A group of one gets 0."""

    def advantages(known: list[float]) -> list[float]:
        n = len(known)
        return [(reward - statistics.fmean(known)) * n / (n - 1) for reward in known]

    return _of_group(rewards, advantages)


def has_signal(rewards: Rewards) -> bool:
    """Whether a group teaches anything: two known rewards differ (dynamic sampling, DAPO)."""
    return len({reward for reward in rewards if reward is not None}) > 1


def overlong(length: int, *, limit: int, margin: int) -> float:
    """What the reward of a long answer loses: 0 up to limit - margin tokens, from there linearly to -1 at the limit.

    Source: DAPO, arXiv 2503.14476, eq. 13.
    """
    return -min(1.0, max(0.0, (length - (limit - margin)) / margin))


def discounted(rewards: Sequence[float], *, gamma: float) -> list[float]:
    """The return of each token: its reward and what follows, discounted by `gamma` for each token between.

    Args:
        rewards: Of each token that the policy wrote, in order; an outcome's reward is that of the last.
    """
    return list(itertools.accumulate(reversed(rewards), lambda after, reward: reward + gamma * after))[::-1]


def gae(
    rewards: Sequence[float], values: Sequence[float], *, gamma: float, lam: float, last: float = 0.0
) -> tuple[list[float], list[float]]:
    """Generalised advantage estimation over the tokens that the policy wrote; what it only read is not among them.

    A_t = sum over k of (gamma lam)^k (r_{t+k} + gamma V_{t+k+1} - V_{t+k}). Source: arXiv 1506.02438, eq. 16.

    Args:
        rewards: Of each token.
        values: What the critic expected at each token.
        last: What it expects after the last one; 0 where the episode ends there.

    Returns:
        Advantages, and the returns that the critic is to learn (advantages + values).
    """
    following = [*values, last][1:]
    errors = [reward + gamma * after - value for reward, after, value in zip(rewards, following, values, strict=True)]
    found = discounted(errors, gamma=gamma * lam)
    return found, [advantage + value for advantage, value in zip(found, values, strict=True)]


def whitened(sequences: Sequence[Sequence[float]], *, epsilon: float = 1e-8) -> list[list[float]]:
    """Mean 0 and deviation 1 over the tokens of a whole step. REINFORCE++ does so to `discounted`, PPO to `gae`.

    Source: REINFORCE++, arXiv 2501.03262, eq. 6.
    """
    tokens = [value for sequence in sequences for value in sequence]
    if len(tokens) < 2:
        return [[0.0] * len(sequence) for sequence in sequences]
    mean, deviation = statistics.fmean(tokens), statistics.stdev(tokens)
    return [[(value - mean) / (deviation + epsilon) for value in sequence] for sequence in sequences]
