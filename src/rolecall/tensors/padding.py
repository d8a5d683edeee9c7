"""Removes trailing padding from batches before they are stored. Pure functions."""

from __future__ import annotations

from typing import Any

MASK = "attention_mask"


def trimmed(value: Any) -> Any:
    """`value`, when it is a dict with a `[batch, seq]` attention mask, without trailing padding.

    Every tensor whose first two axes equal the mask's loses the last columns that are masked out in all rows. Other
    values are returned unchanged, and so is a batch whose mask is all zeros, which does not tell what is padding.
    """
    mask = value.get(MASK) if isinstance(value, dict) else None
    if mask is None or getattr(mask, "ndim", 0) != 2 or not hasattr(mask, "is_sparse"):
        return value
    used = mask.bool().any(dim=0).nonzero()
    width = int(used[-1]) + 1 if len(used) else mask.shape[1]
    if width == mask.shape[1]:
        return value
    grid = tuple(mask.shape)
    out = value.copy()
    for key, item in value.items():
        if hasattr(item, "is_sparse") and tuple(item.shape[:2]) == grid:
            out[key] = item[:, :width]
    return out
