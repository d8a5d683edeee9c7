"""AReaL's source on the path before any test of this folder is imported, and its caches in the tests' own folder."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

import pytest

from tests.areal import source

os.environ.setdefault("AREAL_CACHE_DIR", str(Path(tempfile.gettempdir()) / "areal-cache"))
MISSING = source.use()


class Skipped(pytest.Module):
    """A file of tests whose imports fail here."""

    def collect(self) -> Iterable[pytest.Item]:
        pytest.skip(f"{MISSING}: {source.HOW}", allow_module_level=True)


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    return Skipped.from_parent(parent, path=module_path) if MISSING else None
