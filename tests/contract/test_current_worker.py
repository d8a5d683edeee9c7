"""What an engine knows of its worker. The same tests run against every scheduler."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Callable
from typing import Any

import pytest

import rolecall
from rolecall import Role, RoleWorker, Scheduler
from rolecall.errors import (
    EncodeError,
    EngineCallError,
    EngineCreationError,
    EngineImportError,
    WorkerConfigurationError,
    WorkerCreationError,
)
from tests.support import knowing_engines
from tests.support.backend import Backend
from tests.support.knowing_engines import Knowing
from tests.support.live import ports_leased


def test_an_engine_knows_where_it_is(make: Callable[..., Scheduler], facts: Backend) -> None:
    """The controller says the same of it; forks know their target; seeds are of the run, the role and the index."""
    s = make(seed=7)
    actors = s.start("actor", replicas=2, gpu=1, cpu=1, port_count=3)
    refs = actors.fork("ref")
    for role, targets in ((actors, None), (refs, actors)):
        role.create_engine(Knowing)
        for i, (found, state) in enumerate(zip(role.call("facts"), role.inspect(), strict=True)):
            expected: dict[str, Any] = {
                "id": f"{role.name}/{i}",
                "role": role.name,
                "index": i,
                "replicas": 2,
                "host": state.ip,
                "ports": tuple(map(int, state.ports)),
                "devices": tuple(state.devices),
                "run_dir": s.run_dir,
                "seed": zlib.crc32(f"7/{role.name}/{i}".encode()),
                "target_ports": tuple(map(int, targets.inspect()[i].ports)) if targets else (),
            }
            assert found == expected
            assert len(state.devices) == 1
    if facts.own_processes:
        drawn = [*actors.call("drawn"), *refs.call("drawn")]
        actors[1].restart()
        assert len(set(drawn)) == 4
        assert actors.call("drawn") == drawn[:2]
    everywhere = ["made_in", "on_the_loop", *(["in_a_thread"] if facts.own_processes else [])]
    for method in everywhere:
        assert actors.call(method) == ["actor/0", "actor/1"]
    assert list(actors[1].stream("streamed")) == ["actor/1"]
    before = ports_leased(s) if facts.own_processes else 0
    _leases_ports(actors[0])
    for method in ("itself", "itself_on_the_loop"):
        with pytest.raises(EncodeError, match=r"result of .*CurrentWorker.*return what is needed of it"):
            actors[0].call(method)
    if facts.own_processes:
        assert ports_leased(s) == before + 3


def _leases_ports(worker: RoleWorker) -> None:
    """Three that nobody else has, for plain methods and `async` ones."""
    more = [*worker.call("more_ports", 2), *worker.call("more_ports_on_the_loop", 1)]
    assert len({*more, *map(int, worker.worker.worker_ports)}) == 6
    with pytest.raises(EngineCallError, match="await aalloc_ports"):
        worker.call("wrong")


def test_several_roles_start_at_once(make: Callable[..., Scheduler]) -> None:
    """From one event loop, and each is whole."""
    s = make(worker_setup=knowing_engines.set_up, one_engine_thread=True)

    async def main() -> list[Role]:
        return list(await asyncio.gather(s.astart("actor", 2, cpu=1), s.astart("rollout", cpu=1)))

    actors, rollout = asyncio.run(main())
    assert ([w.id for w in actors], [w.id for w in rollout]) == (["actor/0", "actor/1"], ["rollout/0"])
    rollout.create_engine(Knowing)
    assert rollout.call("made_in") == ["rollout/0"]
    _are_set_up_once(actors)


def _are_set_up_once(role: Role) -> None:
    """With `worker_setup`, on the thread of all engines with `one_engine_thread`."""
    engines = [role.with_options(engine=name) for name in ("first", "second")]
    for engine in engines:
        engine.create_engine(Knowing)
    threads = [engines[0].call("thread"), engines[1].call("thread")]
    assert threads[0] == threads[1]
    assert engines[1].call("set_up_in") == [[thread] for thread in threads[0]]
    engines[0].destroy_engine()
    assert engines[1].call("thread") == threads[1]


def test_a_worker_that_cannot_be_set_up_says_so(make: Callable[..., Scheduler]) -> None:
    """As the error of its first engine, and of the next. Where there is no such function, the role is not started."""
    role = make(worker_setup=f"{knowing_engines.__name__}.fail_to_set_up").start("actor")
    for _ in range(2):
        with pytest.raises(EngineCreationError, match="ValueError: no licence"):
            role.create_engine(Knowing)
    for name, why in (("absent", "has no 'absent'"), ("SET_UP", "names a list, not a function")):
        with pytest.raises(WorkerCreationError, match=f"bad worker_setup=: .*{name}'; .*{why}"):
            make(worker_setup=f"{knowing_engines.__name__}.{name}", trial=name).start("actor")


def test_a_setup_that_workers_cannot_import_is_refused() -> None:
    """Before anything is started."""
    with pytest.raises(EngineImportError, match="a function made inside a function"):
        rolecall.scheduler("local", worker_setup=lambda: None)


def test_there_is_none_outside_of_engines() -> None:
    """The controller is no worker."""
    with pytest.raises(WorkerConfigurationError, match="call it in a method of an engine"):
        rolecall.current_worker()


def test_a_seed_is_a_whole_number() -> None:
    """Anything else is refused before anything is made."""
    with pytest.raises(WorkerConfigurationError, match=r"bad seed: 0\.5"):
        rolecall.scheduler("local", seed=0.5)  # type: ignore[call-overload]
