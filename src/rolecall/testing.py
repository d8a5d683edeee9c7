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
from typing import Any

from rolecall.errors import RolecallError, WorkerConfigurationError, WorkerNotFoundError
from rolecall.guard import runtime
from rolecall.guard.ports import PortLeases
from rolecall.placement.one_host import OneHostScheduler
from rolecall.scheduler.guards import GuardProxy
from rolecall.scheduler.run import Run
from rolecall.transport.hosts import this_host
from rolecall.transport.loop import IOThread
from rolecall.worker.host import thread_stacks
from rolecall.worker.node import WorkerConfig, WorkerNode

IP = "127.0.0.1"


class InProcessScheduler(OneHostScheduler):
    """A scheduler without processes. Takes the options of `LocalScheduler`."""

    def _begin(self) -> None:
        if self._tensor_backend == "ray":
            expected = "workers are threads of this process; use LocalScheduler"
            raise WorkerConfigurationError("the in-process scheduler connects to no Ray", None, expected)
        self._guard: InProcessGuard = InProcessGuard(self._run, self._io, self._tensor_backend)

    def _end_guards(self, *, graceful: bool) -> None:
        self._guard.ask("shutdown").result()


class _Answer:
    """What `GuardProxy.ask` returns, for work done by this process itself."""

    def __init__(self, future: concurrent.futures.Future[Any]) -> None:
        self._future = future

    def result(self) -> Any:
        return self._future.result()

    def cancel(self) -> None:
        self._future.cancel()

    def __await__(self) -> Generator[Any, None, Any]:
        return asyncio.wrap_future(self._future).__await__()


class InProcessGuard(GuardProxy):
    """Answers as a guard does, and keeps worker nodes instead of processes."""

    def __init__(self, run: Run, io: IOThread, tensor_backend: str) -> None:
        super().__init__("in-process", io, lambda guard, topic, facts: None, lambda guard: None)
        self.arrive({"host": os.uname().nodename, "host_id": this_host(), "ip": IP, "pid": os.getpid()})
        self._run, self._io, self._tensor_backend = run, io, tensor_backend
        self._ports = PortLeases(run.run_id)
        self._nodes: dict[str, WorkerNode] = {}
        self._env: dict[str, dict[str, str]] = {}
        self._methods: dict[str, Callable[..., Coroutine[Any, Any, Any]]] = {
            "alloc_ports": self._alloc_ports,
            "kill": self._kill,
            "set_env": self._set_env,
            "stacks": self._stacks,
            "shutdown": self._shutdown,
        }
        (run.runtime_dir / "w").mkdir(mode=0o700)

    def ask(self, method: str, value: dict[str, Any] | None = None, *, timeout: float | None = None) -> Any:
        work = self._methods[method](**(value or {}))
        return _Answer(asyncio.run_coroutine_threadsafe(work, self._io.loop))

    async def _alloc_ports(self, owner: str, count: int) -> dict[str, Any]:
        return {"ports": self._ports.lease(owner, count), "host": IP}

    async def start(self, specs: list[dict[str, Any]], timeout: float) -> AsyncIterator[dict[str, Any]]:
        for spec in specs:
            yield self._start_one(spec)

    def _start_one(self, spec: dict[str, Any]) -> dict[str, Any]:
        worker_id = spec["worker_id"]
        config = WorkerConfig(
            worker_id=worker_id,
            run_id=self._run.run_id,
            token=self._run.token,
            socket=runtime.worker_socket(str(self._run.runtime_dir), worker_id),
            ip=IP,
            bind=IP,
            port=spec["ports"][0],
            tensor_backend=self._tensor_backend,
        )
        result = {
            "worker_id": worker_id,
            "ok": False,
            "pid": os.getpid(),
            "ip": IP,
            "ports": spec["ports"],
            "socket": config.socket,
            "timeline": {},
            "error": "",
            "log_tail": "",
            "log_path": "",
        }
        try:
            if spec["argv"] is not None:
                raise WorkerConfigurationError("the in-process scheduler runs no programs", spec["argv"])
            node = WorkerNode(config, self._io.loop, self._ask_guard)
            node.start()
        except (RolecallError, OSError) as e:
            return {**result, "error": str(e)}
        self._nodes[worker_id] = node
        self._env[worker_id] = {**self._env.get(str(spec["target"]), {}), **spec["env"]}
        return {**result, "ok": True}

    async def _kill(self, workers: list[str], grace_s: float) -> dict[str, Any]:
        for worker_id in workers:
            node = self._nodes.pop(worker_id, None)
            if node is not None:
                await node.close()
            self._ports.release(worker_id)
        return {"killed": dict.fromkeys(workers, "closed")}

    async def _set_env(self, worker: str, env: dict[str, str]) -> None:
        if worker not in self._env:
            raise WorkerNotFoundError(worker, list(self._env))
        self._env[worker] |= env

    async def _stacks(self, worker: str) -> str:
        return thread_stacks()

    async def _shutdown(self) -> None:
        await self._kill(list(self._nodes), 0.0)
        self._ports.close()

    async def _ask_guard(self, method: str, value: dict[str, Any]) -> Any:
        if method == "forked_children":
            return []
        raise WorkerConfigurationError(f"the in-process scheduler answers no {method!r} over HTTP")
