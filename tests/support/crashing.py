"""An engine that brings its process down from native code."""

from __future__ import annotations

import ctypes


class Crashing:
    LIMIT = 3

    @property
    def size(self) -> int:
        return 0

    @classmethod
    def name(cls) -> str:
        return cls.__name__

    def crash(self) -> None:
        ctypes.string_at(0)
