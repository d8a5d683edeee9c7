"""What an engine may know of the worker that it lives in."""

from __future__ import annotations

import asyncio
import os
import random
import sys
import zlib
from asyncio.events import _get_running_loop
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

from rolecall.errors import WorkerConfigurationError
from rolecall.protocol.environment import RAY_NAMESPACE, RAY_PLACEMENT_GROUP
from rolecall.tensors.shard import ShardManager, binding
from rolecall.transport.codec.writer import ENCODERS, refusing

ALLOC_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class CurrentWorker:
    """The worker that an engine lives in.

    Attributes:
        index: Its number in its role, from 0; its rank.
        replicas: Number of workers of its role.
        host: Its host's address, as others reach it.
        ports: Its ports: the first serves the worker, the others are the engine's to use.
        devices: Names of its slot's devices, as the visible-devices variable has them.
        run_dir: The run's directory; other hosts may not share it.
        seed: Of the run's seed, the role and the index: what its generators were seeded with before its first engine
            was made. None when the run has no seed.
        target_ports: Of a fork: the ports of the worker in whose slot it lives, on the same host. Else empty.
    """

    id: str
    role: str
    index: int
    replicas: int
    host: str
    ports: tuple[int, ...]
    devices: tuple[str, ...]
    run_dir: str
    seed: int | None
    target_ports: tuple[int, ...]
    _lease: Callable[[int], Awaitable[list[int]]] = field(repr=False)
    _loop: asyncio.AbstractEventLoop = field(repr=False)

    def alloc_ports(self, count: int) -> list[int]:
        """Leases further ports of its host until the worker ends. In a plain method.

        Raises:
            PortAllocationError: There are not enough.
        """
        if _get_running_loop() is self._loop:
            raise RuntimeError("waiting here would block the loop that the answer comes in on; await aalloc_ports()")
        return asyncio.run_coroutine_threadsafe(self.aalloc_ports(count), self._loop).result(ALLOC_TIMEOUT_S)

    async def aalloc_ports(self, count: int) -> list[int]:
        """The same in an `async` method."""
        return await self._lease(count)


ENCODERS[CurrentWorker] = refusing("it is of use in its worker alone; return what is needed of it, its id for one")
_workers: WeakKeyDictionary[ShardManager, CurrentWorker] = WeakKeyDictionary()


def enter(manager: ShardManager, worker: CurrentWorker) -> None:
    """Makes `worker` the current one wherever `manager` is bound: in a process of its own, or in a call in process."""
    _workers[manager] = worker


def current_worker() -> CurrentWorker:
    """The worker in which this is called: in an engine's methods and constructor, and in threads that they start.

    Raises:
        WorkerConfigurationError: This process is not a worker, or, in process, this thread is not an engine's.
    """
    manager = binding.get()
    worker = _workers.get(manager) if manager is not None else None
    if worker is None:
        raise WorkerConfigurationError("no engine runs here", None, "call it in a method of an engine")
    return worker


def seed_of(run_seed: int, role: str, rank: int) -> int:
    return zlib.crc32(f"{run_seed}/{role}/{rank}".encode())


def seed_generators(seed: int) -> None:
    """Seeds `random`, and numpy's and torch's global generators where they are imported."""
    random.seed(seed)
    numpy: Any = sys.modules.get("numpy")
    if numpy is not None:
        numpy.random.seed(seed)
    torch: Any = sys.modules.get("torch")
    if torch is not None:
        torch.manual_seed(seed)


def ray_placement_group() -> Any:
    """The `ray.util.placement_group.PlacementGroup` of the worker that this is called in.

    For engines that start actors of their own, vLLM's Ray executor for one. With `ray_placement_strategy="deferred"`
    all of the group's CPUs and devices are free for them; otherwise the worker occupies its bundle. Joins the
    cluster where the engine has not done so.

    Raises:
        WorkerConfigurationError: This process is not a worker of a Ray scheduler, or its group was removed.
    """
    name = os.environ.get(RAY_PLACEMENT_GROUP)
    if name is None:
        expected = "call it in an engine of a Ray scheduler's worker"
        raise WorkerConfigurationError("this process has no placement group", None, expected)
    import ray
    from ray.util.placement_group import PlacementGroup, placement_group_table

    if not ray.is_initialized():
        ray.init(address=os.environ["RAY_ADDRESS"], namespace=os.environ[RAY_NAMESPACE], log_to_driver=False)
    for key, table in placement_group_table().items():  # by name in all namespaces: the engine may have chosen its own
        if table["name"] == name and table["state"] != "REMOVED":
            return PlacementGroup(ray.PlacementGroupID(bytes.fromhex(key)))
    raise WorkerConfigurationError("this worker's placement group was removed", name)
