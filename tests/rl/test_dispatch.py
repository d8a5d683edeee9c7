"""Dispatch over data-parallel ranks: nothing is lost, nothing is twice, nobody has much more."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rolecall.rl.dispatch import balanced, restored

LENGTHS = st.lists(st.integers(0, 5000), max_size=60)


@given(tokens=LENGTHS, parts=st.integers(1, 9), group_size=st.integers(1, 5))
def test_every_trajectory_is_in_one_part_beside_its_group(tokens: list[int], parts: int, group_size: int) -> None:
    """Any number of trajectories, also fewer than parts; results come back in their order."""
    divided = balanced(tokens, parts, group_size=group_size)
    assert len(divided) == parts
    assert sorted(position for part in divided for position in part) == list(range(len(tokens)))
    owner = {position: number for number, part in enumerate(divided) for position in part}
    assert all(owner[position] == owner[position - position % group_size] for position in owner)
    assert restored(divided, [[tokens[position] for position in part] for part in divided]) == tokens
    assert divided == balanced(tokens, parts, group_size=group_size)


@given(tokens=LENGTHS, parts=st.integers(1, 9), group_size=st.integers(1, 5))
def test_no_part_has_more_than_the_greedy_bound(tokens: list[int], parts: int, group_size: int) -> None:
    """The mean, and of the largest group all but its share."""
    groups = [sum(tokens[first : first + group_size]) for first in range(0, len(tokens), group_size)]
    loads = [sum(tokens[position] for position in part) for part in balanced(tokens, parts, group_size=group_size)]
    assert max(loads) <= sum(tokens) / parts + (1 - 1 / parts) * max(groups, default=0) + 1e-9


def test_bad_numbers_are_refused() -> None:
    """With what was asked for."""
    with pytest.raises(ValueError, match="parts=0, group_size=1"):
        balanced([1], 0)
