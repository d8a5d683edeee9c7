"""The three engines of the demo: `Actor` trains, `Rollout` samples and scores, `Reference` holds the untrained model.

They are plain classes that do not import the runtime, so each can be used in one process without it. Their methods take
and return tensors and numbers; whether a result is sent as bytes or as a handle is the caller's choice.
"""

from __future__ import annotations

import os
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from rolecall.demo import grpo, task
from rolecall.demo.model import FlatModel, sample
from rolecall.demo.options import Recipe


class Actor:
    """Trains the policy on its share of a batch, data-parallel with the other ranks."""

    def __init__(self, recipe: Recipe) -> None:
        torch.set_num_threads(1)  # matrices this small are slower on two threads than on one
        self.recipe = recipe
        self.policy = FlatModel(recipe)
        self.optimizer = torch.optim.AdamW([self.policy.flat], lr=recipe.lr, weight_decay=0.0, fused=True)

    def connect(self) -> int:
        """Joins the process group named by RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT. Returns its size."""
        dist.init_process_group("gloo", rank=int(os.environ["RANK"]), world_size=int(os.environ["WORLD_SIZE"]))
        return int(dist.get_world_size())

    def train(self, batch: dict[str, Tensor]) -> dict[str, float]:
        """Updates the policy, `recipe.epochs` times.

        Args:
            batch: This rank's share: tokens, logprobs, reference, mask, advantages (shapes as in `grpo`).

        Returns:
            Means over the ranks: loss, kl, clipped, grad_norm of the last pass.
        """
        for _ in range(self.recipe.epochs):
            stats = self._update(batch)
        return stats

    def _update(self, batch: dict[str, Tensor]) -> dict[str, float]:
        loss = self._loss(batch)
        gradient = self.policy.flat.grad
        gradient.zero_()
        loss.total.backward()
        stats = torch.stack([loss.total.detach(), loss.kl, loss.clipped])
        norm = self._average(gradient, stats)
        self.optimizer.step()
        return {"loss": float(stats[0]), "kl": float(stats[1]), "clipped": float(stats[2]), "grad_norm": norm}

    def _loss(self, batch: dict[str, Tensor]) -> grpo.Loss:
        recipe = self.recipe
        return grpo.grpo_loss(
            grpo.token_logprobs(self.policy.logits(batch["tokens"]), batch["tokens"]),
            batch["logprobs"],
            batch["reference"],
            batch["advantages"],
            batch["mask"],
            clip_low=recipe.clip_low,
            clip_high=recipe.clip_high,
            kl_weight=recipe.kl_weight,
        )

    def _average(self, gradient: Tensor, stats: Tensor) -> float:
        if dist.is_initialized():
            for part in (gradient, stats):
                dist.all_reduce(part)
                part /= dist.get_world_size()
        norm = float(gradient.norm())
        gradient *= min(1.0, self.recipe.max_grad_norm / (norm + 1e-6))
        return norm

    def weights(self) -> Tensor:
        """A copy of all weights as one float32 vector, which later training steps do not change."""
        return self.policy.flat.detach().clone()

    def destroy(self) -> None:
        """Leaves the process group."""
        if dist.is_initialized():
            dist.destroy_process_group()


class Reference:
    """The model before any training; computes the logprobs for the KL term."""

    def __init__(self, recipe: Recipe) -> None:
        torch.set_num_threads(1)
        self.policy = FlatModel(recipe)

    def logprobs(self, tokens: Tensor) -> Tensor:
        """Log-probabilities of tokens 1 and up: (batch, length) -> (batch, length - 1)."""
        with torch.inference_mode():
            return grpo.token_logprobs(self.policy.logits(tokens), tokens)


class Rollout:
    """Samples answers with the weights that it loaded last, and scores them."""

    def __init__(self, recipe: Recipe) -> None:
        torch.set_num_threads(1)
        self.recipe = recipe
        self.policy = FlatModel(recipe)
        self.version = 0

    def load(self, weights: Tensor, version: int) -> int:
        """Loads an actor's weights. Returns their version."""
        self.policy.load(weights)
        self.version = version
        return version

    def generate(self, seed: int, prompts: int) -> dict[str, Any]:
        """Samples `recipe.group` answers to each of `prompts` new prompts.

        Returns:
            Tensors, shapes as in `grpo`: tokens, logprobs, mask, advantages. Numbers: reward (mean), exact (share of
            entirely correct answers), tokens_made, version.
        """
        generator = torch.Generator().manual_seed(seed)
        questions = task.draw_prompts(prompts, generator)
        tokens, logprobs = sample(self.policy.model, questions, self.recipe.group, generator)
        rewards = task.score(tokens)
        return {
            "tokens": tokens,
            "logprobs": logprobs,
            "mask": task.answer_mask(len(tokens)),
            "advantages": grpo.group_advantages(rewards, self.recipe.group),
            **self._summary(tokens, rewards),
        }

    def evaluate(self, part: int, parts: int) -> dict[str, Any]:
        """Answers one of `parts` equal parts of the evaluation set greedily. Returns reward, exact, version, sample."""
        questions = task.evaluation_prompts(self.recipe.eval_prompts)[part::parts]
        tokens, _ = sample(self.policy.model, questions, 1, None)
        return {**self._summary(tokens, task.score(tokens)), "sample": task.show(tokens[0])}

    def _summary(self, tokens: Tensor, rewards: Tensor) -> dict[str, Any]:
        return {
            "reward": float(rewards.mean()),
            "exact": float((rewards == 1.0).float().mean()),
            "tokens_made": len(tokens) * task.ANSWER_LENGTH,
            "version": self.version,
        }
