"""Which worker holds which device on one host. Pure bookkeeping: it sets no variable and touches no device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rolecall.errors import GPUAllocationError


class DevicePool:
    """Gives devices out exclusively and takes them back.

    Args:
        devices: Names as they stand in the visible-devices variable: `["0", "1"]`.
        oversubscribe: When too few are free, hand out held ones in turn instead of refusing.
    """

    def __init__(self, devices: Sequence[str], *, oversubscribe: bool = False) -> None:
        self.devices = list(devices)
        self._oversubscribe = oversubscribe
        self._held: dict[str, list[str]] = {}
        self._turn = 0

    def free(self) -> list[str]:
        taken = {d for held in self._held.values() for d in held}
        return [d for d in self.devices if d not in taken]

    def holders(self) -> dict[str, list[str]]:
        return {owner: list(held) for owner, held in self._held.items() if held}

    def preview(self, wants: Mapping[str, int]) -> dict[str, list[str]]:
        """What `take` would give, without taking it.

        Raises:
            GPUAllocationError: Not enough are free; says who holds the others.
        """
        free, given, turn = self.free(), {}, self._turn
        for owner, count in wants.items():
            if count <= len(free):
                given[owner], free = free[:count], free[count:]
            elif self._oversubscribe and count <= len(self.devices):
                given[owner] = [self.devices[(turn + i) % len(self.devices)] for i in range(count)]
                turn += count
            else:
                raise GPUAllocationError(sum(wants.values()), self.free(), self.holders())
        return given

    def take(self, given: Mapping[str, Sequence[str]]) -> None:
        """Gives each owner the devices that `preview` named; nobody may have taken any in between."""
        for owner, devices in given.items():
            if any(d in held for held in self._held.values() for d in devices):
                self._turn += len(devices)
            self._held[owner] = list(devices)

    def give_back(self, owner: str) -> None:
        self._held.pop(owner, None)
