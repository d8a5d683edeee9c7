"""Trailing padding: batches lose the columns that no row uses before they are left behind. Pure functions."""

from __future__ import annotations

from typing import Any

MASK = "attention_mask"


def trimmed(value: Any) -> Any:
    """`value`, when it is a dict with a `[batch, seq]` attention mask, without trailing padding.

    Every tensor whose first two axes are those of the mask loses the last columns that the mask leaves out in all rows.
    Anything else is returned as it is, and so is a batch with an empty mask, which does not say what is padding.
    """
    mask = value.get(MASK) if isinstance(value, dict) else None
    if mask is None or getattr(mask, "ndim", 0) != 2 or not hasattr(mask, "is_sparse"):
        return value
    used = mask.bool().any(dim=0).nonzero()
    width = int(used[-1]) + 1 if len(used) else mask.shape[1]
    if width == mask.shape[1]:
        return value
    grid = tuple(mask.shape)
    cut = {key: item[:, :width] for key, item in value.items() if _on(grid, item)}
    out = value.copy()
    out.update(cut)
    return out


def _on(grid: tuple[int, ...], item: Any) -> bool:
    return hasattr(item, "is_sparse") and item.ndim >= 2 and tuple(item.shape[:2]) == grid
