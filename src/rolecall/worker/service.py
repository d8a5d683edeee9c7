"""What a worker answers on its framed connections. Requests arrive on the loop; nothing here blocks it."""

from __future__ import annotations

import asyncio
import inspect
import os
import random
import sys
import time
import traceback
import zlib
from collections.abc import Callable
from typing import Any

import psutil

from rolecall.errors import (
    EngineCreationError,
    EngineImportError,
    ProtocolError,
    RolecallError,
    WorkerConfigurationError,
)
from rolecall.tensors import functions
from rolecall.tensors.binding import binding
from rolecall.tensors.service import DataService
from rolecall.transport.peer import Incoming
from rolecall.worker.calls import Calls, engine_error
from rolecall.worker.engine_thread import EngineThread
from rolecall.worker.host import EngineHost
from rolecall.worker.loading import load_engine_class

DESTROY_TIMEOUT_S = 10.0


class WorkerService:
    """The worker's methods, by the name they have on the wire."""

    def __init__(self, host: EngineHost, data: DataService, loop: asyncio.AbstractEventLoop) -> None:
        self.host, self.data = host, data
        self._loop = loop
        self._calls = Calls(host, data, loop)
        self._started = time.time()
        self._tasks: set[asyncio.Task[None]] = set()
        self._methods: dict[str, Callable[[Incoming], None]] = {
            "call": self._calls.dispatch,
            "create_engine": self._create_engine,
            "destroy": self._in_task(self.destroy),
            "configure": self._at_once(self.configure),
            "set_env": self._at_once(self.set_env),
            "health": self._at_once(self.health),
            "metrics": self._at_once(self.metrics),
            "data.get": self._data,
            "data.put": self._data,
            "data.clear": self._data,
            "data.info": self._data,
        }

    def dispatch(self, incoming: Incoming) -> None:
        method = self._methods.get(incoming.method)
        try:
            if method is None:
                raise ProtocolError("unknown request", incoming.method, sorted(self._methods))
            method(incoming)
        except RolecallError as e:
            incoming.fail(e)
        except (KeyError, TypeError, ValueError, AttributeError) as e:
            incoming.fail(ProtocolError(f"malformed request {incoming.method!r}", f"{type(e).__name__}: {e}"))

    def _at_once(self, fn: Callable[..., Any]) -> Callable[[Incoming], None]:
        """A method that takes the request's value as its keyword arguments and answers right away."""

        def answer(incoming: Incoming) -> None:
            incoming.finish(fn(**(incoming.args() or {})))

        return answer

    def _in_task(self, fn: Callable[..., Any]) -> Callable[[Incoming], None]:
        def answer(incoming: Incoming) -> None:
            task = self._loop.create_task(self._answer(incoming, fn))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

        return answer

    async def _answer(self, incoming: Incoming, fn: Callable[..., Any]) -> None:
        try:
            incoming.finish(await fn(**(incoming.args() or {})))
        except Exception as e:  # a request is always answered
            incoming.fail(engine_error(self.host.worker_id, incoming.method, e))

    def _data(self, incoming: Incoming) -> None:
        """Copies memory, so on a thread that may take its time."""
        self._loop.run_in_executor(None, self._answer_data, incoming)

    def _answer_data(self, incoming: Incoming) -> None:
        try:
            value = self.data.answer(incoming.method, incoming.args())
        except Exception as e:  # a request is always answered
            return incoming.fail(e)
        incoming.finish(value, stable=incoming.method == "data.get")  # a shard's memory never changes

    def _create_engine(self, incoming: Incoming) -> None:
        name, path = incoming.meta.get("engine") or self.host.worker_id, incoming.meta["path"]
        lane = self.host.reserve(name)
        lane.submit(lambda: self._make(incoming, name, path))

    def _make(self, incoming: Incoming, name: str, path: str) -> None:
        try:
            cls = load_engine_class(path)
            with binding.using(self.data):
                args, kwargs = functions.localize(incoming.args())
                engine = cls(*args, **kwargs)
        except EngineImportError as e:
            self.host.abandon(name)
            return incoming.fail(e)
        except BaseException as e:
            self.host.abandon(name)
            text = "".join(traceback.format_exception(e))
            reason = f"{type(e).__name__}: {e}"
            return incoming.fail(EngineCreationError(self.host.worker_id, name, reason, text))
        self.host.add(name, engine)
        incoming.finish(None)

    async def destroy(self, engines: list[str] | None = None, timeout: float = DESTROY_TIMEOUT_S) -> dict[str, str]:
        """Calls `destroy()` on engines, on their lanes, all at the same time; says what went wrong by name."""
        names = self.host.names() if engines is None else engines
        outcomes = await asyncio.gather(*(self._destroy_one(name, timeout) for name in names))
        return {name: problem for name, problem in zip(names, outcomes, strict=True) if problem}

    async def _destroy_one(self, name: str, timeout: float) -> str:
        hosted = self.host.remove(name)
        if hosted is None:  # it was never made, or another has destroyed it
            return ""
        try:
            destroy = getattr(hosted.engine, "destroy", None)
            if destroy is not None:
                async with asyncio.timeout(timeout):
                    outcome = await on_lane(hosted.lane, destroy, self._loop)
                    if inspect.isawaitable(outcome):
                        await outcome
        except TimeoutError:
            return f"destroy() took more than {timeout:g} s"
        except BaseException as e:
            return f"destroy() raised {type(e).__name__}: {e}"
        finally:
            hosted.lane.close()
        return ""

    def set_env(self, env: dict[str, str]) -> None:
        os.environ.update(env)

    def configure(self, config: dict[str, Any] | None = None, role: str = "", rank: int = 0) -> dict[str, int]:
        """Seeds the worker from its role and rank; `config["seed"]` is the run's seed (default 0)."""
        seed = (config or {}).get("seed", 0)
        try:
            base = int(seed)
        except (TypeError, ValueError, OverflowError) as e:
            raise WorkerConfigurationError("bad seed", seed, "use a whole number") from e
        seed = zlib.crc32(f"{base}/{role}/{rank}".encode())
        random.seed(seed)
        for module, path in (("numpy", "random.seed"), ("torch", "manual_seed")):
            if module in sys.modules:
                fn: Any = sys.modules[module]
                for part in path.split("."):
                    fn = getattr(fn, part)
                fn(seed)
        return {"seed": seed}

    def health(self) -> dict[str, Any]:
        return {"status": "ok", "worker": self.host.worker_id, "pid": os.getpid(), "engines": self.host.names()}

    def metrics(self) -> dict[str, Any]:
        process = psutil.Process()
        cpu = process.cpu_times()
        return {
            "uptime_s": time.time() - self._started,
            "cpu_s": cpu.user + cpu.system,
            "rss_bytes": process.memory_info().rss,
            "open_fds": process.num_fds(),
            "threads": process.num_threads(),
            "calls_begun": self.host.progress.begun,
            "calls_ended": self.host.progress.ended,
            "calls_waiting": self.host.waiting(),
            **self.data.metrics(),
        }


async def on_lane(lane: EngineThread, fn: Callable[[], Any], loop: asyncio.AbstractEventLoop) -> Any:
    done: asyncio.Future[Any] = loop.create_future()

    def settle(value: Any, error: BaseException | None) -> None:
        if not done.done():
            done.set_exception(error) if error is not None else done.set_result(value)

    def job() -> None:
        value, error = None, None
        try:
            value = fn()
        except BaseException as e:
            error = e if isinstance(e, Exception) else RuntimeError(f"{type(e).__name__}: {e}")
        loop.call_soon_threadsafe(settle, value, error)

    lane.submit(job)
    return await done
