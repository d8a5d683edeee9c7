"""For the pytest that runs AReaL's tests: real workers in the places of their mocks. All tests share one run."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rolecall.areal import RolecallScheduler
from tests.areal.own.engines import AnsweringEngine, OwnTrainEngine

_shared: list[RolecallScheduler] = []


class Recorded:
    """A scheduler that notes what it is asked for, as their mock does, and does it."""

    def __init__(self) -> None:
        self.workers, self.engine_calls, self.deleted_roles = list[Any](), list[Any](), list[Any]()
        self.call_count, self.env_settings = 0, dict[str, Any]()

    def create_workers(self, job: Any, *args: Any, **kwargs: Any) -> list[str]:
        _shared[0].delete_workers()  # what a test before this one has left
        made = _shared[0].create_workers(job)
        self.workers = _shared[0].get_workers(job.role)
        return made

    def get_workers(self, role: str, timeout: int | None = None) -> list[Any]:
        return self.workers

    async def set_worker_env(self, worker_id: str, env: dict[str, Any]) -> None:
        self.env_settings[worker_id] = {key: str(value) for key, value in env.items()}
        await _shared[0].set_worker_env(worker_id, env)

    async def create_engine(self, worker_id: str, engine: str, engine_name: str | None = None, **kwargs: Any) -> None:
        await _shared[0].create_engine(worker_id, engine, engine_name, **kwargs)

    async def async_call_engine(self, worker_id: str, method: str, *args: Any, **kwargs: Any) -> Any:
        self.engine_calls.append((worker_id, method, args, kwargs))
        self.call_count += 1
        return await _shared[0].async_call_engine(worker_id, method, *args, **kwargs)

    def delete_workers(self, role: str | None = None, reverse_order: bool = False) -> None:
        self.deleted_roles.append(role)
        self.delete_reverse_order = reverse_order
        _shared[0].delete_workers(role, reverse_order)
        self.workers.clear()


@pytest.fixture(scope="session", autouse=True)
def one_run() -> Iterator[None]:
    folder = Path(tempfile.mkdtemp())
    with RolecallScheduler(
        list(range(8)), experiment_name="own", trial_name="t", fileroot=str(folder), nfs_record_root=str(folder / "n")
    ) as scheduler:
        _shared.append(scheduler)
        yield


@pytest.fixture(autouse=True)
def real(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    instead = {"MockScheduler": Recorded, "MockTrainEngine": OwnTrainEngine, "MockInferenceEngine": AnsweringEngine}
    for name in instead.keys() & vars(request.module).keys():
        monkeypatch.setattr(request.module, name, instead[name])
