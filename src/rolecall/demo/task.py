"""The task: sort five digits. Owns the vocabulary, the prompts and the reward; knows no model.

A sequence is `d d d d d = s s s s s`: five digits, the separator, five answer tokens. All sequences
have the same length, so nothing is padded.
"""

from __future__ import annotations

import torch
from torch import Tensor

DIGITS = 5
EQUALS = 10
VOCAB_SIZE = 16  # tokens 11 to 15 are unused: an untrained model is right in one of 16 cases
PROMPT_LENGTH = DIGITS + 1
ANSWER_LENGTH = DIGITS
LENGTH = PROMPT_LENGTH + ANSWER_LENGTH

EVALUATION_SEED = 20_260_101  # far from the small seeds used for training


def draw_prompts(count: int, generator: torch.Generator) -> Tensor:
    """Draws digits uniformly, with repetition. Returns int64 tokens of shape (count, PROMPT_LENGTH)."""
    digits = torch.randint(0, 10, (count, DIGITS), generator=generator)
    return torch.cat([digits, torch.full((count, 1), EQUALS)], dim=1)


def evaluation_prompts(count: int) -> Tensor:
    """The evaluation set: the same prompts in every process, step and run."""
    return draw_prompts(count, torch.Generator().manual_seed(EVALUATION_SEED))


def score(tokens: Tensor) -> Tensor:
    """Share of answer positions that hold the correct digit.

    Args:
        tokens: Prompts with answers, shape (batch, LENGTH).

    Returns:
        Rewards between 0 and 1, shape (batch,).
    """
    right = tokens[:, :DIGITS].sort(dim=1).values
    return (tokens[:, PROMPT_LENGTH:] == right).float().mean(dim=1)


def answer_mask(count: int) -> Tensor:
    """Mask of the predictions of answer tokens, 1.0 or 0.0, shape (count, LENGTH - 1), see `grpo.token_logprobs`."""
    mask = torch.zeros(count, LENGTH - 1)
    mask[:, PROMPT_LENGTH - 1 :] = 1.0
    return mask


def show(tokens: Tensor) -> str:
    """One sequence as people read it: `31415=11345`; unused tokens are shown as dots."""
    return "".join("0123456789=....."[int(token)] for token in tokens)
