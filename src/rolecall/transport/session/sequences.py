"""Which call ids were taken. Pure; its size grows with the gaps between ids, not with the number of ids."""

from __future__ import annotations

from bisect import bisect_right


class SequenceSet:
    """A set of whole numbers that come mostly in order, kept as closed intervals."""

    __slots__ = ("_first", "_last")

    def __init__(self) -> None:
        self._first: list[int] = []
        self._last: list[int] = []

    def __contains__(self, number: int) -> bool:
        at = bisect_right(self._first, number) - 1
        return at >= 0 and number <= self._last[at]

    def add(self, number: int) -> bool:
        """Adds `number`; False when it was there already."""
        if self._last and number == self._last[-1] + 1:
            self._last[-1] = number
            return True
        if number in self:
            return False
        self._insert(bisect_right(self._first, number) - 1, number)
        return True

    def _insert(self, at: int, number: int) -> None:
        first, last = self._first, self._last
        joins_left = at >= 0 and last[at] + 1 == number
        joins_right = at + 1 < len(first) and first[at + 1] == number + 1
        if joins_left and joins_right:
            last[at] = last.pop(at + 1)
            del first[at + 1]
        elif joins_left:
            last[at] = number
        elif joins_right:
            first[at + 1] = number
        else:
            first.insert(at + 1, number)
            last.insert(at + 1, number)

    @property
    def intervals(self) -> list[tuple[int, int]]:
        """The closed intervals, in order."""
        return list(zip(self._first, self._last, strict=True))
