"""A guard that a placement has started and that ends at once."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import rolecall
from rolecall.errors import WorkerCreationError
from tests.placement.toy.placement import ToyPlacement


def test_a_guard_that_ends_at_once_is_not_waited_for(tmp_path: Path) -> None:
    """The start fails with how it ended, not with a time limit."""
    placement = ToyPlacement(command=[sys.executable, "-c", "import sys; sys.stdin.read(); sys.exit(3)"])
    with (
        rolecall.scheduler(placement, fileroot=tmp_path, start_timeout=60) as s,
        pytest.raises(WorkerCreationError, match="ended with status 3 before it had connected"),
    ):
        s.start("actor")
