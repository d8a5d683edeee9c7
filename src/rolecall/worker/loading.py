"""Imports the class that an engine path names. It refuses classes of the standard library and instantiates none.

A path is `package.module.Class` or `package.module:Class`. Classes of the standard library are refused, under any
name that re-exports them, since an engine is code that the user wrote, and `subprocess.Popen` is not.
Classes of the controller's own program are found by loading it once more under another `__name__`, as
`multiprocessing` does, so the program needs its `if __name__ == "__main__":`.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import threading
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rolecall.errors import EngineImportError
from rolecall.transport.codec.exceptions import said

MAIN_NAME = "__rolecall_main__"


class ControllerMain(types.ModuleType):
    """A worker's `__main__` until a name in it is looked up: then it loads the controller's, which takes its place.

    Args:
        main: What the controller runs: the path of its script, or the name of the module that `python -m` was given.
    """

    def __init__(self, main: str) -> None:
        super().__init__("__main__" if _is_path(main) else main)
        self._main, self._lock = main, threading.RLock()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self._load(), name)

    def _load(self) -> types.ModuleType:
        with self._lock:
            if sys.modules["__main__"] is self:
                load = _load_script if _is_path(self._main) else importlib.import_module
                sys.modules[MAIN_NAME] = self  # by which a scheduler that it makes now knows that it must not
                try:
                    sys.modules["__main__"] = load(self._main)
                except (Exception, SystemExit) as e:
                    sys.modules.pop(MAIN_NAME, None)
                    what = f"loading the controller's program {self._main!r} failed: {said(e)}"
                    if not isinstance(e, ImportError | OSError):
                        what += '; what it does when it is started belongs below `if __name__ == "__main__":`'
                        what += ", since workers import it"
                    raise EngineImportError("__main__", what) from e
        return sys.modules["__main__"]


def _is_path(main: str) -> bool:
    return Path(main).is_absolute()


def _load_script(path: str) -> types.ModuleType:
    spec = importlib.util.spec_from_file_location(MAIN_NAME, path)
    if spec is None or spec.loader is None:
        raise ImportError("it is no file of Python source")
    module = importlib.util.module_from_spec(spec)
    sys.modules[MAIN_NAME] = module
    spec.loader.exec_module(module)
    module.__name__, module.__spec__ = "__main__", None
    _rename(vars(module), MAIN_NAME, "__main__")  # as they are called where the script was started
    return module


def import_main_by_name() -> None:
    """Makes the module that `python -m` runs importable by its name, so that it is not loaded a second time."""
    main = sys.modules["__main__"]
    if main.__spec__ is None:
        return
    name = main.__spec__.name
    sys.modules[name] = main
    _rename(vars(main), "__main__", name)
    parent, _, child = name.rpartition(".")
    if parent:
        setattr(sys.modules[parent], child, main)


def _rename(names: Mapping[str, Any], old: str, new: str) -> None:
    """Sets `__module__` of the classes and functions of a module."""
    for value in names.values():
        if isinstance(value, type | types.FunctionType) and value.__module__ == old:
            value.__module__ = new
            _rename(vars(value), old, new)


def load_engine_class(path: str) -> type:
    """Returns the class that `path` names.

    Raises:
        EngineImportError: It cannot be imported, is no class, or belongs to the standard library.
    """
    target = _load(path)
    if not isinstance(target, type):
        raise EngineImportError(path, f"names a {type(target).__name__}, not a class")
    _refuse_standard_library(path, target.__module__)
    return target


def load_function(path: str) -> Callable[[], object]:
    """Returns the function that `path` names. Errors as `load_engine_class`."""
    target = _load(path)
    if not isinstance(target, types.FunctionType):
        raise EngineImportError(path, f"names a {type(target).__name__}, not a function")
    return target


def _load(path: str) -> Any:
    module_name, name = split_path(path)
    _refuse_standard_library(path, module_name)
    target: Any = _import(path, module_name)
    for part in name.split("."):
        if part not in dir(target) and not isinstance(target, ControllerMain):
            raise EngineImportError(path, _missing(module_name, name))
        try:
            target = getattr(target, part)
        except AttributeError as e:
            raise EngineImportError(path, _missing(module_name, name)) from e
    return target


def _missing(module_name: str, name: str) -> str:
    if module_name != "__main__":
        return f"module {module_name!r} has no {name!r}"
    return f"the script has no {name!r} where workers load it; define it above `if __name__ == '__main__':`"


def split_path(path: str) -> tuple[str, str]:
    """Splits an engine path into module and qualified name."""
    if not isinstance(path, str):
        raise EngineImportError(repr(path), "use a class or 'package.module.Class'")
    module, colon, name = path.partition(":")
    if not colon:
        module, _, name = path.rpartition(".")
    if not module or not all(part.isidentifier() for part in (*module.split("."), *name.split("."))):
        raise EngineImportError(path, "use a class or 'package.module.Class'")
    return module, name


def _refuse_standard_library(path: str, module_name: str) -> None:
    top = module_name.partition(".")[0]
    if top != "__main__" and (top in sys.stdlib_module_names or top in sys.builtin_module_names):
        raise EngineImportError(path, "classes of the standard library are refused as engines; name a class of yours")


def _import(path: str, module_name: str) -> types.ModuleType:
    if module_name == "__main__":
        return sys.modules["__main__"]
    try:
        return importlib.import_module(module_name)
    except Exception as e:
        raise EngineImportError(path, said(e)) from e
