"""The backends that the suites run against: those of which a folder of `tests/placement` says how they are tested."""

from __future__ import annotations

from enum import Enum
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from _pytest.mark.structures import ParameterSet

from rolecall import Scheduler
from tests.support.backend import Backend
from tests.support.checkout import ROOT

FOLDERS = sorted(path.parent.name for path in (ROOT / "tests" / "placement").glob("*/under_test.py"))
BACKENDS: dict[str, Backend] = {
    backend.name: backend
    for backend in (import_module(f"tests.placement.{folder}.under_test").BACKEND for folder in FOLDERS)
}
CLUSTERS = {backend.cluster for backend in BACKENDS.values() if backend.cluster is not None}
# Whose workers are processes of their own.
OF_PROCESSES = [name for name, backend in BACKENDS.items() if backend.own_processes and not backend.contract_only]


def each(names: list[str]) -> list[ParameterSet]:
    """Parameters for a fixture `backend`."""
    return [on(name) for name in names]


def on(name: str, *values: Any) -> ParameterSet:
    """Parameters for a fixture `backend` and for others that a test crosses it with."""
    return pytest.param(name, *values, marks=_needs(BACKENDS[name].cluster), id="-".join(map(_shown, (name, *values))))


def _shown(value: Any) -> str:
    return value.name if isinstance(value, Enum) else str(value)


def _needs(cluster: str | None) -> list[pytest.MarkDecorator]:
    return [pytest.mark.cluster(cluster)] if cluster is not None else []


def make_scheduler(backend: str, *, fileroot: str | Path, **options: object) -> Scheduler:
    """A scheduler for a test. Nothing is preloaded, since few tests need it and all would wait for it."""
    defaults = {"experiment": "suite", "trial": "t", "preload": []}
    return BACKENDS[backend].make(fileroot=fileroot, **{**defaults, **options})


def exported(patch: pytest.MonkeyPatch, cluster: Any) -> None:
    """Sets the variables by which a program finds a cluster of the tests."""
    for variable, value in cluster.exports.items():
        patch.setenv(variable, value)
