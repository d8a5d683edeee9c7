"""`InProcessScheduler`: every worker is a thread's worth of objects in this process, reached over real sockets.

For users' own tests: starts in milliseconds, engines can be stepped through with a debugger, and everything above the
guard (codec, calls, streams, handles, roles) is the real thing. What needs a process of its own is refused: programs
as workers. Environment variables are recorded, not set, since all workers share one process.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Coroutine
from functools import partial
from pathlib import Path
from typing import Any, Unpack

import msgspec

from rolecall.errors import RolecallError, WorkerConfigurationError, WorkerNotFoundError, WorkerTimeoutError
from rolecall.guard import runtime
from rolecall.guard.host import hello
from rolecall.guard.ports import PortLeases
from rolecall.guard.requests import RequestHandler
from rolecall.placement.base import PlacementContext
from rolecall.placement.host_placement import HostPlacement
from rolecall.protocol import guard as asked
from rolecall.protocol.guard import Method, ProcessSpec, StartResult
from rolecall.protocol.guard_config import GuardConfig
from rolecall.protocol.message import Message
from rolecall.protocol.worker_methods import FORKED_CHILDREN, AllocPorts, WorkerConfig
from rolecall.scheduler.backends import PlacedScheduler
from rolecall.scheduler.keywords import HostKeywords
from rolecall.transport.client import Client
from rolecall.transport.peer import Incoming, Peer
from rolecall.worker.host import thread_stacks
from rolecall.worker.node import WorkerNode

IP = "127.0.0.1"
GUARD_ID = "in-process"
CONNECTED_WITHIN_S = 10.0


class InProcessScheduler(PlacedScheduler):
    """A scheduler without processes.

    Args:
        options: `devices`, `oversubscribe`, and those of `Scheduler`.
    """

    def __init__(self, **options: Unpack[HostKeywords]) -> None:
        super().__init__(InProcessPlacement, **options)


class InProcessPlacement(HostPlacement):
    """One guard, in this process. Devices are given out as by `LocalPlacement`."""

    name = "in-process"
    starts_processes = False

    def open(self, context: PlacementContext) -> None:
        config = context.guard_config(GUARD_ID, ip=IP)
        if config.tensor_backend == "ray":
            expected = "workers are threads of this process; use LocalScheduler"
            raise WorkerConfigurationError("the in-process scheduler connects to no Ray", None, expected)
        self._context, self._expected = context, context.expect(GUARD_ID)
        self._guard = InProcessGuard(config, context.io.loop)

    def _guard_for(self, role: str) -> str:
        if not self._expected.wait(CONNECTED_WITHIN_S):
            self._expected.check()
            raise WorkerTimeoutError(f"guard {GUARD_ID}", CONNECTED_WITHIN_S, "connection")
        return GUARD_ID

    def close(self, *, graceful: bool) -> None:
        self._context.shut_down([self._expected], 0.0)
        self._guard.close()


class InProcessGuard(RequestHandler):
    """Answers as a guard does, and keeps worker nodes instead of processes."""

    def __init__(self, config: GuardConfig, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(self._spawn)
        self._config, self._loop = msgspec.structs.replace(config, ip=IP, bind=IP), loop
        self._ports = PortLeases(config.run_id)
        self._nodes: dict[str, WorkerNode] = {}
        self._env: dict[str, dict[str, str]] = {}
        self._leased: dict[str, list[int]] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._serve(asked.ALLOC_PORTS, self._alloc_ports)
        self._serve(asked.KILL, self._kill)
        self._serve(asked.SET_ENV, self._set_env)
        self._serve(asked.STACKS, self._stacks)
        self._serve(asked.SHUTDOWN, self._shutdown)
        Path(config.runtime_dir, "w").mkdir(mode=0o700)
        peer = Peer("controller", loop=loop, handler=self)
        self._client = Client(peer, config.controller, config.token, hello(config))

    def close(self) -> None:
        """Ends the conversation with the controller, and gives all ports back."""
        self._client.close()
        self._ports.close()

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _call(self, incoming: Incoming) -> Any:
        if incoming.method != asked.START.name:
            return await super()._call(incoming)
        for spec in incoming.message(asked.Start, "the controller").specs:
            await incoming.emit(self._start(spec))
        return None

    def _start(self, spec: ProcessSpec) -> StartResult:
        config = WorkerConfig(
            guard=self._config,
            worker_id=spec.worker_id,
            socket=runtime.worker_socket(self._config.runtime_dir, spec.worker_id),
            ports=spec.ports,
            target_ports=self._leased.get(str(spec.target), []),
            devices=spec.devices,
            replicas=spec.replicas,
        )
        try:
            if spec.argv is not None:
                raise WorkerConfigurationError("the in-process scheduler runs no programs", spec.argv)
            node = WorkerNode(config, self._loop, partial(self._ask_guard, spec.worker_id))
            node.start()
        except (RolecallError, OSError) as e:
            return StartResult(worker_id=spec.worker_id, ok=False, error=str(e))
        self._nodes[spec.worker_id], self._leased[spec.worker_id] = node, spec.ports
        self._env[spec.worker_id] = {**self._env.get(str(spec.target), {}), **spec.env}
        return StartResult(
            worker_id=spec.worker_id, ok=True, pid=os.getpid(), ip=IP, ports=spec.ports, socket=config.socket
        )

    async def _alloc_ports(self, wanted: asked.AllocPorts) -> asked.Ports:
        return asked.Ports(ports=self._ports.lease(wanted.owner, wanted.count, wanted.wanted), host=IP)

    async def _kill(self, wanted: asked.Kill) -> asked.KillReport:
        for worker_id in wanted.workers:
            await self._end(worker_id)
        return asked.KillReport(killed=dict.fromkeys(wanted.workers, "closed"))

    async def _end(self, worker_id: str) -> None:
        node = self._nodes.pop(worker_id, None)
        if node is not None:
            await node.close()
        self._ports.release(worker_id)

    async def _set_env(self, wanted: asked.SetEnv) -> None:
        if wanted.worker not in self._env:
            raise WorkerNotFoundError(wanted.worker, list(self._env))
        self._env[wanted.worker] |= wanted.env

    async def _stacks(self, wanted: asked.Stacks) -> str:
        return thread_stacks()

    async def _shutdown(self, wanted: asked.Shutdown) -> asked.KillReport:
        for worker_id in list(self._nodes):
            await self._end(worker_id)
        return asked.KillReport()

    async def _ask_guard(self, worker: str, method: Method[Any, Any], request: Message) -> Any:
        if method is FORKED_CHILDREN:
            return []
        if isinstance(request, AllocPorts):
            return await self._alloc_ports(asked.AllocPorts(owner=worker, count=request.count))
        raise WorkerConfigurationError(f"the in-process scheduler answers no {method.name!r}")
