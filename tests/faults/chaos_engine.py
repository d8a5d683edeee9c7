"""The engine that the chaos program hosts in workers, with children of every kind."""

from __future__ import annotations

from tests.support import sample_engines


class Engine(sample_engines.HidingParent, sample_engines.Arrays, sample_engines.Echo):
    """Echoes, waits, streams, fails, leaves, and makes and reads arrays."""

    def __init__(self) -> None:
        sample_engines.HidingParent.__init__(self)
        sample_engines.Arrays.__init__(self)
        sample_engines.Echo.__init__(self)
