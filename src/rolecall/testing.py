"""`InProcessScheduler`: every worker is a thread's worth of objects in this process, reached over real sockets.

For users' own tests: starts in milliseconds, engines can be stepped through with a debugger, and everything above the
guard (codec, calls, streams, handles, roles) is the real thing. What needs a process of its own is refused: programs
as workers. Environment variables are recorded, not set, since all workers share one process.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
from collections.abc import AsyncIterator, Callable, Coroutine, Generator
from typing import Any, TypeVar

from rolecall.errors import RolecallError, WorkerConfigurationError, WorkerNotFoundError
from rolecall.guard import runtime
from rolecall.guard.ports import PortLeases
from rolecall.placement.one_host import OneHostScheduler
from rolecall.protocol import guard as asked
from rolecall.protocol.guard import Method, ProcessSpec, StartResult
from rolecall.protocol.guard_hello import GuardHello
from rolecall.protocol.message import Message
from rolecall.protocol.worker import FORKED_CHILDREN, WorkerConfig
from rolecall.scheduler.guards import GuardProxy
from rolecall.scheduler.run import Run
from rolecall.transport.hosts import this_host
from rolecall.transport.loop import IOThread
from rolecall.worker.host import thread_stacks
from rolecall.worker.node import WorkerNode

IP = "127.0.0.1"
Q = TypeVar("Q", bound=Message)
A = TypeVar("A")


class InProcessScheduler(OneHostScheduler):
    """A scheduler without processes. Takes the options of `LocalScheduler`."""

    def _begin(self) -> None:
        if self._tensor_backend == "ray":
            expected = "workers are threads of this process; use LocalScheduler"
            raise WorkerConfigurationError("the in-process scheduler connects to no Ray", None, expected)
        self._guard: InProcessGuard = InProcessGuard(self._run, self._io, self._tensor_backend)
        self._watch.guards = lambda: [self._guard]

    def _end_guards(self, *, graceful: bool) -> None:
        self._guard.ask(asked.SHUTDOWN, asked.Shutdown()).result()


class InProcessGuard(GuardProxy):
    """Answers as a guard does, and keeps worker nodes instead of processes."""

    def __init__(self, run: Run, io: IOThread, tensor_backend: str) -> None:
        super().__init__("in-process", io, lambda guard, event: None, lambda guard: None)
        self.arrive(
            GuardHello(
                guard_id="in-process",
                run_id=run.run_id,
                pid=os.getpid(),
                host=os.uname().nodename,
                host_id=this_host(),
                ip=IP,
            )
        )
        self._run, self._io, self._tensor_backend = run, io, tensor_backend
        self._ports = PortLeases(run.run_id)
        self._nodes: dict[str, WorkerNode] = {}
        self._env: dict[str, dict[str, str]] = {}
        self._methods: dict[str, Callable[..., Coroutine[Any, Any, Any]]] = {
            asked.ALLOC_PORTS.name: self._alloc_ports,
            asked.KILL.name: self._kill,
            asked.SET_ENV.name: self._set_env,
            asked.STACKS.name: self._stacks,
            asked.SHUTDOWN.name: self._shutdown,
        }
        (run.runtime_dir / "w").mkdir(mode=0o700)

    def ask(self, method: Method[Q, A], request: Q, *, timeout: float | None = None) -> Any:
        work = self._methods[method.name](request)
        return _Answer(asyncio.run_coroutine_threadsafe(work, self._io.loop))

    async def _alloc_ports(self, wanted: asked.AllocPorts) -> asked.Ports:
        return asked.Ports(ports=self._ports.lease(wanted.owner, wanted.count), host=IP)

    async def start(self, specs: list[ProcessSpec], timeout: float) -> AsyncIterator[StartResult]:
        for spec in specs:
            yield self._start_one(spec)

    def _start_one(self, spec: ProcessSpec) -> StartResult:
        config = WorkerConfig(
            worker_id=spec.worker_id,
            run_id=self._run.run_id,
            guard_id=self.guard_id,
            token=self._run.token,
            socket=runtime.worker_socket(str(self._run.runtime_dir), spec.worker_id),
            ip=IP,
            bind=IP,
            port=spec.ports[0],
            ports=spec.ports,
            tensor_backend=self._tensor_backend,
        )
        try:
            if spec.argv is not None:
                raise WorkerConfigurationError("the in-process scheduler runs no programs", spec.argv)
            node = WorkerNode(config, self._io.loop, self._ask_guard)
            listening = node.start()
        except (RolecallError, OSError) as e:
            return StartResult(worker_id=spec.worker_id, ok=False, error=str(e))
        self._nodes[spec.worker_id] = node
        self._env[spec.worker_id] = {**self._env.get(str(spec.target), {}), **spec.env}
        return StartResult(
            worker_id=spec.worker_id, ok=True, pid=listening.pid, ip=IP, ports=spec.ports, socket=listening.socket
        )

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

    async def _shutdown(self, wanted: asked.Shutdown) -> asked.ShutdownReport:
        for worker_id in list(self._nodes):
            await self._end(worker_id)
        self._ports.close()
        return asked.ShutdownReport()

    async def _ask_guard(self, method: Method[Q, A], request: Q) -> Any:
        if method is FORKED_CHILDREN:
            return []
        raise WorkerConfigurationError(f"the in-process scheduler answers no {method.name!r} over HTTP")


class _Answer:
    """The answer of this process itself."""

    def __init__(self, future: concurrent.futures.Future[Any]) -> None:
        self._future = future

    @property
    def call(self) -> _Answer:
        return self

    def result(self) -> Any:
        return self._future.result()

    def cancel(self) -> None:
        self._future.cancel()

    def __await__(self) -> Generator[Any, None, Any]:
        return asyncio.wrap_future(self._future).__await__()
