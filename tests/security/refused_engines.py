"""A module with an engine, and beside it what must not become one."""

from __future__ import annotations

import os
import subprocess
from functools import cached_property
from pathlib import Path
from subprocess import Popen as Runner
from typing import Any

__all__ = ["Engine", "Path", "Runner", "os", "subprocess"]

touches = 0


def touch() -> Any:
    """A getter that ran."""
    global touches
    touches += 1
    return lambda: "touched"


class Lazy:
    """A descriptor of the user's own, whose getter gives something to call."""

    def __get__(self, instance: object, owner: type) -> Any:
        return touch()


class Engine:
    Tool = subprocess.Popen
    lazy = Lazy()

    class Inner:
        def method(self) -> str:
            return "inner"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.value = 5

    def method(self) -> str:
        return "fine"

    @classmethod
    def class_method(cls) -> str:
        return "fine"

    @staticmethod
    def static_method() -> str:
        return "fine"

    def touched(self) -> int:
        return touches

    def _private(self) -> str:
        return "private"

    def __mangled(self) -> str:
        return "mangled"

    @property
    def prop(self) -> Any:
        return touch()

    @cached_property
    def cached(self) -> Any:
        return touch()


def function(*args: Any, **kwargs: Any) -> Engine:
    return Engine()


instance = Engine()
