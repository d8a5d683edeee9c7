"""Which trajectories go to which data-parallel rank. Pure: lengths in, numbers out."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


def balanced(tokens: Sequence[int], parts: int, *, group_size: int = 1) -> list[list[int]]:
    """Divides trajectories so that each part has about as many tokens: the longest first, each to the emptiest part.

    The fullest part exceeds the mean by less than the longest group (Graham 1969). The same lengths give the same
    parts.

    Args:
        tokens: Of each trajectory, any number of them.
        parts: Number of parts, of which some are empty where there are fewer groups.
        group_size: So many neighbours are answers to one prompt and stay together; the last group may be smaller.

    Returns:
        For each part the positions in `tokens`, ascending.
    """
    if parts < 1 or group_size < 1:
        raise ValueError(f"parts={parts}, group_size={group_size}: use 1 or more of each")
    groups = [range(first, min(first + group_size, len(tokens))) for first in range(0, len(tokens), group_size)]
    sums = [sum(tokens[position] for position in group) for group in groups]
    divided: list[list[int]] = [[] for _ in range(parts)]
    emptiest = [(0, part) for part in range(parts)]
    for group in sorted(range(len(groups)), key=lambda group: -sums[group]):
        there, part = emptiest[0]
        divided[part].extend(groups[group])
        heapq.heapreplace(emptiest, (there + sums[group], part))
    return [sorted(positions) for positions in divided]


def restored(parts: Sequence[Sequence[int]], results: Sequence[Sequence[T]]) -> list[T]:
    """What the parts returned, one result for each trajectory, in the order before they were divided."""
    found: dict[int, T] = {}
    for positions, of_part in zip(parts, results, strict=True):
        found.update(zip(positions, of_part, strict=True))
    return [found[position] for position in range(len(found))]
