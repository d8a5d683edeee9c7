"""Every loss, aggregation and correction against an independent implementation, value and gradient."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from rolecall.rl import correction, losses
from rolecall.rl.aggregation import Aggregation, Counts, total
from rolecall.rl.correction import Kind, Level
from rolecall.rl.divergence import kl
from rolecall.rl.tokens import Tokens
from tests.rl.oracle import LENGTHS, Case, case, gradient, ligers

LONGEST = 16
COUNTS = Counts(tokens=sum(LENGTHS), sequences=len(LENGTHS))
# Ours, and what Liger's function calls the same.
POLICY: dict[str, tuple[Callable[[Tokens], Tensor], dict[str, Any]]] = {
    "ppo": (losses.ppo, {}),
    "clip-higher": (partial(losses.ppo, clip_high=0.28), {"epsilon_high": 0.28}),
    "gspo": (
        partial(losses.gspo, clip_low=0.03, clip_high=0.05),
        {"importance_sampling_level": "sequence", "epsilon_low": 0.03, "epsilon_high": 0.05},
    ),
    "cispo": (partial(losses.cispo, ratio_max=1.3), {"loss_type": "cispo", "epsilon_high": 1.3}),
}
LIGERS_NAMES: dict[Aggregation, dict[str, Any]] = {
    "token_mean": {"loss_type": "bnpo"},
    "sequence_mean_token_mean": {"loss_type": "grpo"},
    "sequence_mean_token_sum": {"loss_type": "dr_grpo", "max_completion_length": LONGEST},
}
CORRECTIONS: list[tuple[Kind, Level]] = [
    ("none", "token"),
    *itertools.product(get_args(Kind)[1:], get_args(Level)),
]


def same(found: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9)


def weights_by_hand(found: Case, kind: Kind, level: Level, low: float, high: float) -> Tensor:
    """Of each token in rows, worked out row by row and token by token."""
    t, rows = found.tokens, torch.zeros_like(found.mask)
    for row in range(t.sequences):
        ratios = (t.proximal - t.behave)[t.sequence == row].exp()
        if level == "sequence":
            ratios = torch.full_like(ratios, float(ratios.prod()))
        elif level == "geometric":
            ratios = torch.full_like(ratios, float(ratios.prod()) ** (1 / len(ratios)))
        for column, ratio in enumerate(ratios.tolist()):
            outside = ratio > high or (kind == "icepop" and ratio < low)
            rows[row, column] = min(ratio, high) if kind == "tis" else 0.0 if outside else ratio
    return torch.ones_like(rows) if kind == "none" else rows


CASES = [
    (name, how, kind, level)
    for name, how, (kind, level) in itertools.product(POLICY, LIGERS_NAMES, CORRECTIONS)
    if name != "cispo" or how == "token_mean"  # of the others Liger has no CISPO
    # Weighted by token, a sequence's ratio has another gradient there: as if all of its tokens had their mean weight.
    if name != "gspo" or level != "token" or kind == "none"
]


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(("name", "how", "kind", "level"), CASES)
def test_losses_are_those_of_the_oracle(name: str, how: Aggregation, kind: Kind, level: Level, seed: int) -> None:
    """Each policy loss, aggregated and corrected in each way, with a KL term and without, within 1e-6."""
    loss, theirs = POLICY[name]
    found = case(seed)
    low, high = 0.7, 1.4
    weights = correction.weights(found.tokens, kind, level=level, low=low, high=high)

    def ours(t: Tokens, beta: float) -> Tensor:
        values = loss(t) * weights + (beta * kl(t.logp, t.need("ref"), "k3") if beta else 0.0)
        return total(values, t, how, COUNTS, constant=LONGEST)

    for beta in (0.0, 0.04):
        settings = LIGERS_NAMES[how] | theirs | {"beta": beta}
        settings["vllm_is_ratio"] = weights_by_hand(found, kind, level, low, high)
        same(gradient(partial(ours, beta=beta), found.tokens), ligers(found, **settings))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("how", get_args(Aggregation))
def test_cispo_keeps_every_tokens_gradient(how: Aggregation, seed: int) -> None:
    """It is linear in the log-probabilities: each token's gradient is its clipped ratio times its advantage."""
    found = case(seed)
    t = found.tokens
    each = -(t.log_ratio.exp().clamp(0.5, 1.2) * t.need("advantage")).detach()
    shares = {
        "token_mean": torch.full((COUNTS.tokens,), 1 / COUNTS.tokens),
        "sequence_mean_token_mean": torch.cat([torch.full((n,), 1 / n / len(LENGTHS)) for n in LENGTHS]),
        "sequence_mean_token_sum": torch.full((COUNTS.tokens,), 1 / LONGEST / len(LENGTHS)),
        "token_sum": torch.ones(COUNTS.tokens),
    }[how].double()
    loss = partial(losses.cispo, ratio_min=0.5, ratio_max=1.2)
    ours = gradient(lambda t: total(loss(t), t, how, COUNTS, constant=LONGEST), t)
    same(ours, ((each * shares * t.logp.detach()).sum(), each * shares))


@pytest.mark.parametrize("how", get_args(Aggregation))
@pytest.mark.parametrize("name", POLICY)
def test_a_step_may_be_split_as_one_likes(name: str, how: Aggregation) -> None:
    """The parts of any micro-batches add up to the loss of the whole step; one without tokens adds 0 and a gradient."""
    loss, whole = POLICY[name][0], case(0).tokens
    expected = gradient(lambda t: total(loss(t), t, how, COUNTS, constant=LONGEST), whole)
    for sizes in ([1] * 6, [2, 1, 3], [0, 5, 0, 1]):
        value, parts, first = torch.zeros(()).double(), [], 0
        for size in sizes:
            part = _sequences(whole, first, first + size)
            of_part = gradient(lambda t: total(loss(t), t, how, COUNTS, constant=LONGEST), part)
            value, first = value + of_part[0], first + size
            parts.append(of_part[1])
        same((value, torch.cat(parts)), expected)


def _sequences(t: Tokens, first: int, last: int) -> Tokens:
    """The micro-batch of some neighbouring sequences of another."""
    those = (t.sequence >= first) & (t.sequence < last)
    names = ("logp", "behave", "prox", "ref", "advantage")
    return replace(
        t,
        **{name: t.need(name)[those] for name in names},
        sequence=t.sequence[those] - first,
        sequences=last - first,
    )


def test_what_a_dual_clip_bounds() -> None:
    """The loss of a token with a negative advantage ends at so many times the advantage, and with it the gradient."""
    ratio, advantage = torch.tensor([10.0, 2.0, 10.0]).double(), torch.tensor([-1.0, -1.0, 1.0]).double()
    t = _tokens(logp=ratio.log(), behave=torch.zeros(3).double(), advantage=advantage)
    value, found = gradient(lambda t: losses.ppo(t, dual_clip=3.0).sum(), t)
    assert float(value) == pytest.approx(3.0 + 2.0 - 1.2)
    assert found.tolist() == pytest.approx([0.0, 2.0, 0.0])


def test_rejected_sequences_are_known() -> None:
    """Those without a token of weight, so that their rewards can leave the baseline."""
    t = case(1).tokens
    weights = torch.ones_like(t.logp).index_fill(0, (t.sequence == 2).nonzero().squeeze(1), 0.0)
    assert correction.rejected(t, weights).tolist() == [False, False, True, False, False, False]


def test_the_critic_learns_no_faster_than_its_clip() -> None:
    """Within the clip half the squared error; beyond it the gradient ends, unless the critic is on the wrong side."""
    old, goal = torch.zeros(3).double(), torch.tensor([1.0, 1.0, -1.0]).double()
    now = torch.tensor([0.1, 0.5, 0.5]).double().requires_grad_()
    t = replace(_tokens(logp=old, behave=old), value=now, old_value=old, returns=goal)
    found = losses.value(t, clip=0.2)
    assert found.tolist() == pytest.approx([0.9**2 / 2, 0.8**2 / 2, 1.5**2 / 2])
    (slope,) = torch.autograd.grad(found.sum(), now)
    assert slope.tolist() == pytest.approx([-0.9, 0.0, 1.5])


def test_the_proximal_policy_lies_between_by_version() -> None:
    """Sampled by the proximal weights: their own; by older ones: as far on the way as the versions are."""
    behave, logp = torch.tensor([-1.0, -1.0, -1.0]).double(), torch.tensor([-3.0, -3.0, -3.0]).double()
    found = losses.log_linear_prox(logp, behave, trained=5, proximal=4, sampled=torch.tensor([4, 3, 1]))
    assert found.tolist() == pytest.approx([-1.0, -2.0, -2.5])


def test_what_a_loss_needs_is_named() -> None:
    """Instead of an arithmetic error about None."""
    t = _tokens(logp=torch.zeros(1), behave=torch.zeros(1))
    with pytest.raises(ValueError, match="needs `advantage` of every token"):
        losses.ppo(t)
    assert losses.sft(t).tolist() == [0.0]


def _tokens(logp: Tensor, behave: Tensor, advantage: Tensor | None = None) -> Tokens:
    """A sequence for each token."""
    return Tokens(logp=logp, behave=behave, advantage=advantage, sequence=torch.arange(len(logp)), sequences=len(logp))


def test_the_estimators_of_the_divergence() -> None:
    """The mean of k1 and of k3 over the policy's own tokens is the divergence; the gradient of k2 is its gradient."""
    logits = torch.tensor([0.3, -0.2, 1.0, 0.1]).double().requires_grad_()
    policy = logits.log_softmax(0)
    ref = torch.tensor([0.1, 0.4, 0.2, 0.3]).double().log()
    true = (policy.exp() * (policy - ref)).sum()
    (slope,) = torch.autograd.grad(true, logits, retain_graph=True)
    share = policy.exp().detach()
    for estimator in ("k1", "k3"):
        assert (share * kl(policy, ref, estimator)).sum().item() == pytest.approx(true.item())  # type: ignore[arg-type]
    (ours,) = torch.autograd.grad((share * kl(policy, ref, "k2")).sum(), logits)
    torch.testing.assert_close(ours, slope)
