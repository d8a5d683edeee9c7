"""The model: a small Qwen2 of `transformers` with random weights, stored in one flat vector.

With one vector, averaging gradients over ranks, the optimizer's step and sending the weights to a rollout worker are
single operations.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from rolecall.demo import task
from rolecall.demo.options import Recipe


def build_model(recipe: Recipe) -> Any:
    """Makes the model; the same seed gives the same weights in every process."""
    from transformers import Qwen2Config, Qwen2ForCausalLM  # an extra, and 4 s of imports

    config = Qwen2Config(
        vocab_size=task.VOCAB_SIZE,
        hidden_size=recipe.hidden,
        intermediate_size=4 * recipe.hidden,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        max_position_embeddings=task.LENGTH,
        attn_implementation="sdpa",
    )
    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed)
        return Qwen2ForCausalLM(config)


class FlatModel:
    """A causal language model whose parameters, and their gradients, are views of one vector each.

    Attributes:
        model: The `transformers` model.
        flat: The parameter for an optimizer, float32, whose gradient is always allocated.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.model = build_model(recipe)
        parameters = list(self.model.parameters())
        self.flat = nn.Parameter(torch.cat([p.detach().flatten() for p in parameters]))
        self.flat.grad = torch.zeros_like(self.flat)
        start = 0
        for parameter in parameters:
            here = slice(start, start + parameter.numel())
            parameter.data = self.flat.data[here].view_as(parameter)
            parameter.grad = self.flat.grad[here].view_as(parameter)
            start = here.stop

    def logits(self, tokens: Tensor) -> Tensor:
        """Predictions for tokens 1 and up: (batch, length) -> (batch, length - 1, vocabulary)."""
        return self.model(input_ids=tokens[:, :-1], use_cache=False).logits

    def load(self, weights: Tensor) -> None:
        """Copies in the weights of a model of the same recipe, shape as `flat`."""
        self.flat.data.copy_(weights)
