"""Advantages as values, against sums written out."""

from __future__ import annotations

import random
import statistics

import pytest

from rolecall.rl import advantages


def test_grpo_compares_an_answer_with_its_group() -> None:
    """Mean 0 and deviation 1; a group that agrees, or of one answer, gets 0."""
    assert advantages.grpo([0.0, 1.0], epsilon=0.0) == pytest.approx([-(0.5**0.5), 0.5**0.5])
    assert advantages.grpo([0.2, 0.2, 0.2]) == [0.0, 0.0, 0.0]
    assert advantages.grpo([7.0]) == [0.0]


def test_rloo_compares_an_answer_with_the_others() -> None:
    """With their mean alone."""
    rewards = [1.0, 0.0, 0.5, 0.25]
    others = [[r for j, r in enumerate(rewards) if j != i] for i in range(4)]
    expected = [reward - statistics.fmean(rest) for reward, rest in zip(rewards, others, strict=True)]
    assert advantages.rloo(rewards) == pytest.approx(expected)


@pytest.mark.parametrize("estimate", [advantages.centred, advantages.grpo, advantages.rloo])
def test_who_has_no_reward_is_no_part_of_the_baseline(estimate: object) -> None:
    """What failed or could not be scored changes nothing for the others; no reward at all is no error."""
    assert callable(estimate)
    found = estimate([1.0, None, 0.0, 0.3, None])
    assert [found[1], found[4]] == [None, None]
    assert [found[0], found[2], found[3]] == estimate([1.0, 0.0, 0.3])
    assert estimate([None, None]) == [None, None] and estimate([]) == []


def test_a_group_without_a_difference_teaches_nothing() -> None:
    """Nor does one of which a single reward is known."""
    assert advantages.has_signal([0.0, None, 1.0])
    assert not advantages.has_signal([1.0, 1.0]) and not advantages.has_signal([1.0, None])


def test_long_answers_lose_reward_from_the_margin_on() -> None:
    """Linearly, from nothing to 1."""
    lost = [advantages.overlong(length, limit=100, margin=20) for length in (50, 80, 90, 100, 120)]
    assert lost == pytest.approx([0.0, 0.0, -0.5, -1.0, -1.0])


def test_gae_is_its_double_sum() -> None:
    """For rewards and values at random, and for an episode that goes on after the last token."""
    draw = random.Random(0)
    for length in (1, 2, 17):
        rewards, values = ([draw.gauss(0, 1) for _ in range(length)] for _ in range(2))
        gamma, lam, last = 0.97, 0.9, draw.gauss(0, 1)
        following = [*values[1:], last]
        expected = [
            sum((gamma * lam) ** (k - t) * (rewards[k] + gamma * following[k] - values[k]) for k in range(t, length))
            for t in range(length)
        ]
        found, returns = advantages.gae(rewards, values, gamma=gamma, lam=lam, last=last)
        assert found == pytest.approx(expected, abs=1e-12)
        assert returns == pytest.approx([a + v for a, v in zip(expected, values, strict=True)], abs=1e-12)
    assert advantages.gae([], [], gamma=1.0, lam=1.0) == ([], [])


def test_returns_are_discounted_by_the_tokens_between() -> None:
    """An outcome's reward reaches the first token at gamma to the power of what lies between."""
    assert advantages.discounted([0.0, 0.0, 8.0], gamma=0.5) == [2.0, 4.0, 8.0]


def test_whitening_is_over_all_tokens_of_a_step() -> None:
    """Not over each sequence."""
    found = advantages.whitened([[1.0, 2.0], [6.0]])
    tokens = [value for sequence in found for value in sequence]
    assert statistics.fmean(tokens) == pytest.approx(0.0, abs=1e-9)
    assert statistics.stdev(tokens) == pytest.approx(1.0)
    assert [len(sequence) for sequence in found] == [2, 1]
    assert advantages.whitened([[3.0], []]) == [[0.0], []]
