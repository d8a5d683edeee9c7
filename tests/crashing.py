"""An engine that brings its process down from native code."""

from __future__ import annotations

import ctypes


class Crashing:
    def crash(self) -> None:
        ctypes.string_at(0)
