"""Removes trailing padding from batches before they are stored. Pure functions."""

from __future__ import annotations

from typing import Any

from rolecall.tensors.dtypes import is_array, is_tensor

MASK = "attention_mask"


def trimmed(value: Any) -> Any:
    """`value`, when it is a dict with a `[batch, seq]` attention mask, without trailing padding.

    Every tensor or array whose first two axes equal the mask's loses the last columns that are masked out in all rows.
    Other values are returned unchanged, and so is a batch whose mask is all zeros, which does not tell what is padding.
    """
    mask: Any = value.get(MASK) if isinstance(value, dict) else None
    if not _dense(mask) or mask.ndim != 2:
        return value
    used: list[bool] = (mask != 0).any(0).tolist()
    width = len(used) - used[::-1].index(True) if any(used) else mask.shape[1]
    if width == mask.shape[1]:
        return value
    grid = tuple(mask.shape)
    out = value.copy()
    for key, item in value.items():
        if _dense(item) and tuple(item.shape[:2]) == grid:
            out[key] = item[:, :width]
    return out


def _dense(value: Any) -> bool:
    return is_tensor(value) or is_array(value)
