"""KL divergence of the policy from a reference, estimated at each token that the policy wrote, shape (tokens,)."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

Estimator = Literal["k1", "k2", "k3"]


def kl(logp: Tensor, ref: Tensor, estimator: Estimator) -> Tensor:
    """Estimates KL(pi || pi_ref) from log-probabilities of sampled tokens.

    As a penalty in the reward, `k1` (detached) gives the right gradient; as a term of the loss, `k2`. `k3` as a term
    of the loss has the value of least variance, but its gradient is that of KL(pi_ref || pi) to first order: a biased
    one (arXiv 2510.01555, 2512.21852).

    Args:
        logp: Under the policy; the gradient flows through it.
        ref: Under the reference model.
        estimator: `k1`: d = log pi - log pi_ref; `k2`: d^2 / 2; `k3`: exp(-d) - 1 + d. Source of all three: J.
            Schulman, "Approximating KL Divergence".
    """
    difference = logp - ref
    if estimator == "k1":
        return difference
    if estimator == "k2":
        return difference.square() / 2
    return (-difference).exp() - 1.0 + difference
