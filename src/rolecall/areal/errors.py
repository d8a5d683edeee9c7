"""Errors of rolecall as AReaL's, by the names that both have."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from areal.infra.scheduler import exceptions as theirs

from rolecall import errors as ours

TRANSLATIONS: dict[type[ours.RolecallError], Callable[[Any], theirs.SchedulerError]] = {
    ours.WorkerCreationError: lambda e: theirs.WorkerCreationError(e.role, str(e)),
    ours.WorkerConfigurationError: lambda e: theirs.WorkerConfigurationError(str(e.what), str(e)),
    ours.WorkerFailedError: lambda e: theirs.WorkerFailedError(
        e.worker_id, -e.signal if e.exit_code is None and e.signal else e.exit_code, e.report
    ),
    ours.WorkerNotFoundError: lambda e: theirs.WorkerNotFoundError(e.name),
    ours.WorkerTimeoutError: lambda e: theirs.WorkerTimeoutError(e.worker_id, e.timeout),
    ours.EngineCreationError: lambda e: theirs.EngineCreationError(e.worker_id, str(e)),
    ours.EngineCallError: lambda e: theirs.EngineCallError(e.worker_id, e.method, str(e)),
    ours.EngineImportError: lambda e: theirs.EngineImportError(e.path, e.reason),
    ours.PortAllocationError: lambda e: theirs.PortAllocationError(str(e)),
    ours.GPUAllocationError: lambda e: theirs.GPUAllocationError(str(e)),
    ours.RolecallError: lambda e: theirs.SchedulerError(str(e)),
}


@contextmanager
def translated() -> Iterator[None]:
    """Raises AReaL's error where the block raises ours, which is its cause."""
    try:
        yield
    except ours.RolecallError as e:
        raise next(make for cls, make in TRANSLATIONS.items() if isinstance(e, cls))(e) from e
