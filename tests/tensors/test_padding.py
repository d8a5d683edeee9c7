"""Batches lose trailing padding, and nothing else, before they are left behind."""

from __future__ import annotations

from collections import UserDict
from typing import Any

import pytest
import torch

from rolecall.tensors.service import trimmed


def _batch(mask: list[list[int]]) -> dict[str, Any]:
    grid = torch.tensor(mask)
    rows, width = grid.shape
    return {
        "attention_mask": grid,
        "input_ids": torch.arange(rows * width).view(rows, width),
        "hidden": torch.ones(rows, width, 3),
        "rewards": torch.ones(rows),
        "other": torch.ones(rows, width + 1),
        "note": "text",
    }


def test_columns_that_no_row_uses_go_from_every_tensor_of_the_grid() -> None:
    """Trailing columns without any attention are cut from all tensors of that shape, and from nothing else."""
    batch = _batch([[1, 1, 0, 0], [1, 1, 1, 0]])
    out = trimmed(batch)
    assert out["attention_mask"].tolist() == [[1, 1, 0], [1, 1, 1]]
    assert out["input_ids"].tolist() == [[0, 1, 2], [4, 5, 6]]
    assert out["hidden"].shape == (2, 3, 3)
    assert out["rewards"] is batch["rewards"] and out["other"] is batch["other"] and out["note"] == "text"
    assert batch["input_ids"].shape == (2, 4)


def test_leading_padding_and_holes_stay() -> None:
    """Only columns behind the last used one are cut."""
    assert trimmed(_batch([[0, 1, 0, 1, 0]]))["attention_mask"].tolist() == [[0, 1, 0, 1]]


@pytest.mark.parametrize(
    "value",
    [
        _batch([[1, 1], [1, 0]]),
        _batch([[0, 0], [0, 0]]),
        {"attention_mask": [[1, 0]]},
        {"attention_mask": torch.tensor([1, 0])},
        {"input_ids": torch.ones(2, 2)},
        UserDict(),
        [torch.ones(1)],
    ],
)
def test_anything_else_is_returned_as_it_is(value: Any) -> None:
    """A value that is no padded batch is returned as the same object."""
    assert trimmed(value) is value
