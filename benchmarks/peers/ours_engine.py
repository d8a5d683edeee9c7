"""The engine that our side's workers host; a module of its own, because workers import it by name."""

from __future__ import annotations

import os
from typing import Any


class Worker:
    """What every peer's worker does: answer, echo, give a tensor, read one."""

    def __init__(self) -> None:
        import torch

        torch.set_num_threads(1)
        self.held: Any = None

    def hold(self, mark: int) -> Any:
        """The worker's tensor, made when it is first asked for, with this mark in it."""
        import torch

        if self.held is None:
            self.held = torch.zeros(16 * 1024 * 1024)
        self.held[0] = mark
        return self.held

    def ping(self, value: Any) -> Any:
        return value

    def process_id(self) -> int:
        return os.getpid()

    def give(self, mark: int) -> Any:
        return self.hold(mark)

    def give_array(self, mark: int) -> Any:
        return self.hold(mark).numpy()

    def read(self, given: Any) -> float:
        """The mark, after touching every page."""
        return float(given[0]) + float(given[1024::1024].sum())
