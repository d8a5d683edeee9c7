"""The numbers of the demo's experiment: model, group sizes, learning rate. A value that every engine is made from.

It imports nothing heavy: the controller reads it without torch.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Recipe:
    """What is trained and how.

    Attributes:
        seed: Decides the first weights, the prompts and what is sampled. Evaluation prompts are the same for all seeds.
        hidden: Width of the model.
        layers: Number of its layers.
        heads: Number of its attention heads.
        prompts: Prompts a step, over all rollout workers.
        group: Answers sampled for a prompt, compared with each other.
        epochs: Passes of the optimizer over a step's batch.
        lr: Learning rate of AdamW.
        clip_low: The probability ratio is clipped below at 1 - clip_low.
        clip_high: The probability ratio is clipped above at 1 + clip_high.
        kl_weight: Weight of the distance to the reference model in the loss. The reference is an untrained model,
            nearly uniform over the tokens, so this keeps the policy trying: with 0.001 it settles at a reward of 0.7.
        max_grad_norm: Longer gradients are shortened to this.
        eval_prompts: Size of the evaluation set.
    """

    seed: int = 0
    hidden: int = 64
    layers: int = 2
    heads: int = 4
    prompts: int = 16
    group: int = 16
    epochs: int = 2
    lr: float = 1e-3
    clip_low: float = 0.2
    clip_high: float = 0.28
    kl_weight: float = 0.05
    max_grad_norm: float = 1.0
    eval_prompts: int = 256
