"""Names of types on the wire, `package.module:Outer.Inner`, and which of them may be found again.

A name that arrives is looked up, never trusted:

- Each part must be an identifier, and `__main__` may only stand alone, so no program is run by importing it.
- Nothing of the standard library, except for `STDLIB` below.
- The module is taken from `sys.modules`. For the arguments of a call one that is not loaded is imported, as it is when
  an engine's path names it; for an answer never: no worker makes its controller import anything.
- The type is looked up in the module's own names (no `__getattr__` runs), must be a class, and must have been defined
  under that very name, so an alias in an innocent module leads nowhere.
- The caller says what kind it must be: a dataclass, an enum, ...; anything else is refused.

`__main__` is whatever `sys.modules["__main__"]` is: a worker's loads the controller's program when a name in it is
asked for, and is then that program's module.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable
from functools import lru_cache
from types import ModuleType
from typing import Any

from rolecall.errors import DecodeError

_ALLOWED = """
asyncio.exceptions:InvalidStateError asyncio.exceptions:IncompleteReadError asyncio.queues:QueueEmpty
asyncio.queues:QueueFull concurrent.futures._base:InvalidStateError concurrent.futures.process:BrokenProcessPool
concurrent.futures.thread:BrokenThreadPool dataclasses:FrozenInstanceError http:HTTPMethod http:HTTPStatus
json.decoder:JSONDecodeError queue:Full signal:Signals socket:gaierror socket:herror ssl:SSLError
subprocess:CalledProcessError subprocess:TimeoutExpired _queue:Empty zipfile:BadZipFile
"""
STDLIB = frozenset(_ALLOWED.split())
_NEVER = frozenset({"sitecustomize", "usercustomize", "test"})  # run or hold code, and are not in stdlib_module_names
_NAME = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")
_LONGEST = 500
_MAIN = "__main__"
_MAIN_HINT = "; define it at the top of the script or in a module (an interactive session has none to load)"


@lru_cache(maxsize=4096)
def _why_refused(name: str) -> str:
    """Returns why the name may not be looked up, or "". Pure."""
    if not _NAME.fullmatch(name):
        return "not a name of a type at the top of a module or a class"
    module, _, qualname = name.partition(":")
    parts = module.split(".")
    if _MAIN in parts and module != _MAIN:
        return "a program, not a module"
    if name in STDLIB or (module == "builtins" and "." not in qualname):
        return ""
    if parts[0] in sys.stdlib_module_names or parts[0] in _NEVER:
        return "a type of the standard library"
    return ""


def name_of(cls: type) -> str:
    """Returns the name under which the other side finds `cls`.

    Raises:
        LookupError: It has none: a local class, one of the standard library, one that was replaced. The text is a hint.
    """
    module = _MAIN if cls.__module__ == _main_module_name() else cls.__module__
    name = f"{module}:{cls.__qualname__}"
    why = _why_refused(name)
    if "<locals>" in name:
        why = "it is defined inside a function; define it at the top of a module"
    if not why and _look_up(module, cls.__qualname__) is not cls:
        why = f"it is not what {name} names now"
    if why:
        raise LookupError(why)
    return name


def resolve(
    name: Any, kind: type, is_kind: Callable[[type], bool] | None = None, called: str = "", *, imports: bool
) -> Any:
    """Returns the class of that name.

    Args:
        imports: A module that is not loaded is imported; those of `STDLIB` are in any case.
        kind: It is this class or a subclass of it,
        is_kind: and this is true of it, for what is `called` so.

    Raises:
        DecodeError: The name is refused, not found, or not of the kind.
    """
    if type(name) is not str:
        raise DecodeError("name of a type is no text", type(name).__name__)
    why = "too long" if len(name) > _LONGEST else _why_refused(name)
    if why:
        raise DecodeError(f"type refused, {why}", name[:_LONGEST])
    module, _, qualname = name.partition(":")
    cls = _look_up(module, qualname)
    if cls is None and not (imports or name in STDLIB or module in sys.modules):
        raise DecodeError("module of a type is not imported here; import it in this program", name)
    if cls is None:
        _import(module, qualname)  # also waits for another thread that is importing it now
        cls = _look_up(module, qualname)
    if cls is None:
        raise DecodeError("no type of that name here" + (_MAIN_HINT if module == _MAIN else ""), name)
    if not issubclass(cls, kind) or (is_kind is not None and not is_kind(cls)):
        raise DecodeError(f"type is not a {called or kind.__name__}", name)
    return cls


def _import(module: str, qualname: str) -> None:
    main = sys.modules.get(_MAIN)
    try:
        if module != _MAIN:
            importlib.import_module(module)
        elif type(main) is not ModuleType:  # a worker's loads the controller's program when a name is asked for
            getattr(main, qualname.partition(".")[0], None)
    except (Exception, SystemExit) as e:  # a module may do anything when imported, also exit
        raise DecodeError(f"module of a type cannot be imported ({type(e).__name__}: {e})", module) from e


def _look_up(module: str, qualname: str) -> type | None:
    found: Any = sys.modules.get(module)
    for part in qualname.split("."):
        found = getattr(found, "__dict__", {}).get(part)
    if not isinstance(found, type) or found.__qualname__ != qualname:
        return None
    return found if found.__module__ == (_main_module_name() if module == _MAIN else module) else None


def _main_module_name() -> str:
    return getattr(sys.modules.get(_MAIN), "__name__", _MAIN)
