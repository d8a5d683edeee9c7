"""Imports the class that an engine path names. It refuses classes of the standard library and instantiates none.

A path is `package.module.Class` or `package.module:Class`. Classes of the standard library are refused, under any
name that re-exports them, since an engine is code that the user wrote, and `subprocess.Popen` is not.
Classes of the controller's own script are found by loading that script once more under another `__name__`, as
`multiprocessing` does, so the script needs its `if __name__ == "__main__":`.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from pathlib import Path
from typing import Any

from rolecall.errors import EngineImportError

MAIN_NAME = "__rolecall_main__"


class ScriptModule(types.ModuleType):
    """The controller's script as `__main__`, loaded when an attribute is first looked up."""

    def __init__(self, path: str) -> None:
        super().__init__("__main__")
        self._path = path

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self._load(), name)

    def _load(self) -> types.ModuleType:
        loaded = sys.modules.get(MAIN_NAME)
        if loaded is None:
            loaded = _load_script(self._path)
        return loaded


def _load_script(path: str) -> types.ModuleType:
    spec = importlib.util.spec_from_file_location(MAIN_NAME, path)
    if spec is None or spec.loader is None or not Path(path).is_file():
        raise EngineImportError("__main__", f"the controller's script {path!r} is not readable on this host")
    module = importlib.util.module_from_spec(spec)
    sys.modules[MAIN_NAME] = module
    try:
        spec.loader.exec_module(module)
    except BaseException as e:
        del sys.modules[MAIN_NAME]
        raise EngineImportError(
            "__main__", f"loading the controller's script {path!r} failed: {type(e).__name__}: {e}"
        ) from e
    _rename_to_main(module)
    return module


def _rename_to_main(module: types.ModuleType) -> None:
    """Sets `__module__` of the script's classes to `__main__`, as the controller does, so that type names are equal."""
    for value in vars(module).values():
        if isinstance(value, type) and value.__module__ == MAIN_NAME:
            value.__module__ = "__main__"


def load_engine_class(path: str) -> type:
    """Returns the class that `path` names.

    Raises:
        EngineImportError: It cannot be imported, is no class, or belongs to the standard library.
    """
    module_name, name = split_path(path)
    _refuse_standard_library(path, module_name)
    target: Any = _import(path, module_name)
    for part in name.split("."):
        if part not in dir(target) and not isinstance(target, ScriptModule):
            raise EngineImportError(path, f"module {module_name!r} has no {name!r}")
        try:
            target = getattr(target, part)
        except AttributeError as e:
            raise EngineImportError(path, f"module {module_name!r} has no {name!r}") from e
    if not isinstance(target, type):
        raise EngineImportError(path, f"names a {type(target).__name__}, not a class")
    _refuse_standard_library(path, target.__module__)
    return target


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
        raise EngineImportError(path, f"{type(e).__name__}: {e}") from e
