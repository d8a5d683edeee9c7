"""The task as values: prompts, rewards, masks."""

from __future__ import annotations

import torch

from rolecall.demo import task


def _sequence(text: str) -> list[int]:
    return [task.EQUALS if sign == "=" else 15 if sign == "." else int(sign) for sign in text]


def test_the_reward_is_the_share_of_right_positions() -> None:
    """Five of five is 1, a token that means nothing is wrong, digits in the wrong place are wrong."""
    tokens = torch.tensor([_sequence(s) for s in ("31415=11345", "31415=11354", "31415=.....", "55555=55555")])
    assert torch.allclose(task.score(tokens), torch.tensor([1.0, 0.6, 0.0, 1.0]))


def test_prompts_are_five_digits_and_the_sign_that_asks() -> None:
    """Every prompt has its shape, and the same generator seed gives the same prompts."""
    prompts = task.draw_prompts(64, torch.Generator().manual_seed(3))
    assert prompts.shape == (64, task.PROMPT_LENGTH)
    assert (prompts[:, -1] == task.EQUALS).all()
    assert prompts[:, :-1].min() == 0
    assert prompts[:, :-1].max() == 9
    assert torch.equal(prompts, task.draw_prompts(64, torch.Generator().manual_seed(3)))


def test_the_evaluation_set_does_not_depend_on_what_was_drawn_before() -> None:
    """Two calls give the same prompts, whatever the global generator did between them."""
    first = task.evaluation_prompts(32)
    torch.rand(5)
    assert torch.equal(first, task.evaluation_prompts(32))


def test_the_mask_marks_the_five_predictions_that_made_the_answer() -> None:
    """Prediction t chooses token t + 1, so the first marked one is that after the sign."""
    mask = task.answer_mask(2)
    assert mask.shape == (2, task.LENGTH - 1)
    assert mask[0].tolist() == [0.0] * task.DIGITS + [1.0] * task.ANSWER_LENGTH


def test_a_sequence_is_shown_as_people_read_it() -> None:
    """Tokens that mean nothing are dots."""
    assert task.show(torch.tensor(_sequence("90210=0129."))) == "90210=0129."
