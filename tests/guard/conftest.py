"""Guards for the tests: each test gets its own, and leaves nothing of it."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.guard.guard_rig import Rig


@pytest.fixture
def make_rig(tmp_path: Path) -> Iterator[Callable[..., Rig]]:
    """Starts guards with options of their own."""
    rigs: list[Rig] = []

    def make(**options: Any) -> Rig:
        rigs.append(Rig(tmp_path / f"run{len(rigs)}", **options))
        return rigs[-1]

    (tmp_path / "run0").mkdir()
    (tmp_path / "run1").mkdir()
    yield make
    for rig in rigs:
        rig.close()


@pytest.fixture
def rig(make_rig: Callable[..., Rig]) -> Rig:
    """One guard."""
    return make_rig()
