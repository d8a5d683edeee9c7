"""The set of ids that were taken."""

from __future__ import annotations

import random

from rolecall.transport.session.callee import SequenceSet


def test_sequences_are_remembered_exactly() -> None:
    """The set of taken ids agrees with a plain set, whatever the order, and stays small when there are no gaps."""
    numbers = list(range(2000)) * 2
    random.Random(1).shuffle(numbers)
    taken, plain = SequenceSet(), set()
    for number in numbers:
        assert (number in taken) == (number in plain)
        assert taken.add(number) == (number not in plain)
        plain.add(number)
    assert taken.intervals == [[0, 1999]]
