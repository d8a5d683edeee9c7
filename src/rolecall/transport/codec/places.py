"""Where in a value something lies, for messages: `[3]`, `['key']`, `.field`, `{element}` after one another. Pure."""

from __future__ import annotations

import reprlib
from collections import deque
from collections.abc import Iterable
from typing import Any

_SHOWN = 60  # characters of a key or an element

_short = reprlib.Repr()
_short.maxstring = _short.maxother = _SHOWN


class Refused(Exception):
    """A value is not serializable. On its way up it learns where the value lies; nothing is spent on that otherwise."""

    def __init__(self, value: Any, hint: str = "") -> None:
        self.value, self.hint = value, hint
        self._child = value
        self._steps: list[tuple[int, str]] = []  # innermost first: the parent's identity, the step down from it

    def rise(self, parent: Any) -> None:
        """Notes the step from `parent` to where the refusal is now."""
        if parent is not self._child:
            self._steps.append((id(parent), step(parent, self._child)))
        self._child = parent

    def place(self, root: str) -> str:
        seen: set[int] = set()
        for parent, text in reversed(self._steps):
            if parent in seen:  # a cycle: once around says it all
                break
            seen.add(parent)
            root += text
        return root


def step(parent: Any, child: Any) -> str:
    """Returns how to get from `parent` to `child`, which is found by identity; "" when it is not found."""
    if isinstance(parent, dict):
        return _in_dict(parent, child)
    if isinstance(parent, set | frozenset):
        return f"{{{shown(child)}}}"
    if isinstance(parent, list | tuple | deque) and not hasattr(parent, "_fields"):
        return next((f"[{i}]" for i, item in enumerate(parent) if item is child), "")
    return next((f".{name}" for name in field_names(parent) if getattr(parent, name, None) is child), "")


def field_names(value: Any) -> Iterable[str]:
    """The names of what an object holds: fields of its type first, then its own attributes."""
    for name in ("__dataclass_fields__", "__struct_fields__", "_fields"):
        yield from getattr(type(value), name, ())
    for name in ("__dict__", "__pydantic_extra__", "__pydantic_private__"):
        yield from getattr(value, name, None) or ()
    if isinstance(value, BaseException):
        yield "args"
    if isinstance(value, slice):
        yield from ("start", "stop", "step")


def _in_dict(parent: dict[Any, Any], child: Any) -> str:
    for key, value in parent.items():
        if value is child:
            return f"[{shown(key)}]"
        if key is child:
            return f"{{{shown(key)}}}"
    return ""


def shown(value: Any) -> str:
    """A short `repr` that never fails."""
    try:
        text = _short.repr(value)
    except BaseException:  # the user's __repr__ may do anything, and raise SystemExit
        return f"<{type(value).__name__}>"
    return text if len(text) <= _SHOWN + 2 else text[:_SHOWN] + "..."
