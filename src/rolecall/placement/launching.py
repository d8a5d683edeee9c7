"""What guards and workers find as the controller does: its modules and its current folder."""

from __future__ import annotations

import sys
from pathlib import Path

from rolecall.errors import WorkerConfigurationError


def python_path() -> list[str]:
    """Where the controller finds modules; `""` (the current folder) by name, since workers must find the same."""
    return list(dict.fromkeys(p or current_folder() for p in sys.path))


def current_folder() -> str:
    """The folder that workers start in.

    Raises:
        WorkerConfigurationError: It was deleted.
    """
    try:
        return str(Path.cwd())
    except FileNotFoundError as e:
        what = "the current folder was deleted"
        raise WorkerConfigurationError(what, None, "change to one that is there; workers start in it too") from e
