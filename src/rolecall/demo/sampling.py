"""Samples answers from a model in batches. It owns no weights; its only randomness is the generator it is passed.

The answers to a prompt share its key-value cache: the prompt is prefilled once, then the cache is repeated for the
group. For the demo's sizes that is five times as fast as recomputing prompt and answer for every token (4.5 against
22 ms for 128 answers on one core).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rolecall.demo import task


def _choose(logprobs: Tensor, generator: torch.Generator | None) -> Tensor:
    if generator is None:
        return logprobs.argmax(dim=-1, keepdim=True)
    return torch.multinomial(logprobs.exp(), 1, generator=generator)


def sample(model: Any, prompts: Tensor, group: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """Samples `group` answers to each prompt.

    Args:
        model: A `transformers` causal language model.
        prompts: Shape (prompts, PROMPT_LENGTH).
        group: Answers per prompt.
        generator: Draws at temperature 1; None takes the most likely token (greedy).

    Returns:
        Tokens of shape (prompts * group, LENGTH), the answers of a prompt side by side, and their log-probabilities of
        shape (prompts * group, LENGTH - 1), 0 where the token was not sampled.
    """
    tokens = torch.zeros(len(prompts) * group, task.LENGTH, dtype=torch.int64)
    tokens[:, : task.PROMPT_LENGTH] = prompts.repeat_interleave(group, dim=0)
    logprobs = torch.zeros(len(tokens), task.LENGTH - 1)
    with torch.inference_mode():
        read = model(input_ids=prompts, use_cache=True, logits_to_keep=1)
        cache, logits = read.past_key_values, read.logits[:, -1].repeat_interleave(group, dim=0)
        cache.batch_repeat_interleave(group)
        for position in range(task.PROMPT_LENGTH, task.LENGTH):
            if position > task.PROMPT_LENGTH:
                last = tokens[:, position - 1 : position]
                logits = model(input_ids=last, past_key_values=cache, use_cache=True).logits[:, -1]
            scores = logits.log_softmax(dim=-1)
            chosen = _choose(scores, generator)
            tokens[:, position : position + 1] = chosen
            logprobs[:, position - 1 : position] = scores.gather(-1, chosen)
    return tokens, logprobs
