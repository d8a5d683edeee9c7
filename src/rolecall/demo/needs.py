"""What the demo needs beside the base. It looks for it and imports nothing."""

from __future__ import annotations

from importlib.util import find_spec

from rolecall.errors import WorkerConfigurationError

NEEDS = ("torch", "numpy", "transformers", "matplotlib")


def check_needs(modules: tuple[str, ...] = NEEDS) -> None:
    """Refuses to begin what would fail on the first worker.

    Raises:
        WorkerConfigurationError: Modules are missing; the message says how to get them.
    """
    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        what = f"the demo needs {', '.join(missing)}"
        raise WorkerConfigurationError(what, None, "pip install 'rolecall[rl]', or `make demo` in a checkout")
