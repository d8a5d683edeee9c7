"""AReaL's source on the path before any test of this folder is imported, and its caches in the tests' own folder."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.areal import source
from tests.support.schedulers_under_test import BACKENDS, OF_PROCESSES, each, exported

os.environ.setdefault("AREAL_CACHE_DIR", str(Path(tempfile.gettempdir()) / "areal-cache"))
MISSING = source.use()


def pytest_collection_finish() -> None:
    """AReaL's package changes the event loops of the process that imports it, and other tests run in it too."""
    asyncio.set_event_loop_policy(None)


class Skipped(pytest.Module):
    """A file of tests whose imports fail here."""

    def collect(self) -> Iterable[pytest.Item]:
        pytest.skip(f"{MISSING}: {source.HOW}", allow_module_level=True)


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    return Skipped.from_parent(parent, path=module_path) if MISSING else None


@pytest.fixture(scope="module", params=each(OF_PROCESSES))
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("areal")


@pytest.fixture(scope="module")
def scheduler(request: pytest.FixtureRequest, backend: str, folder: Path) -> Iterator[Any]:
    """AReaL's scheduler of the backend, for a whole file."""
    from rolecall.areal import RolecallScheduler  # fails where AReaL is not

    with pytest.MonkeyPatch.context() as patch:
        if (name := BACKENDS[backend].cluster) is not None:
            exported(patch, request.getfixturevalue(name))
        names: dict[str, Any] = {"experiment_name": "areal", "trial_name": "suite"}
        with RolecallScheduler(
            backend=backend, **names, fileroot=str(folder), nfs_record_root=str(folder / "names")
        ) as scheduler:
            yield scheduler
