"""Workers that all tests of a file call, on each backend."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from rolecall import Role, Scheduler
from tests.support.schedulers_under_test import BACKENDS, each

WORKERS = 3


@pytest.fixture(scope="module", params=each(list(BACKENDS)))
def backend(request: pytest.FixtureRequest) -> str:
    """Every one of them, where a file names no others."""
    return str(request.param)


@pytest.fixture(scope="module")
def lasting(kept: Scheduler, backend: str) -> Role | None:
    """Started once: no test of calls asks how a role begins or ends. None where workers are no processes."""
    return kept.start("actor", WORKERS, cpu=1) if BACKENDS[backend].own_processes else None


@pytest.fixture
def actor(lasting: Role | None, kept: Scheduler) -> Iterator[Role]:
    """They; or a test's own where they are threads of this process, of which it may leave none."""
    if lasting is not None:
        yield lasting
        return
    yield kept.start("actor", WORKERS, cpu=1)
    kept.delete_workers()
