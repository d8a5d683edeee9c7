"""EngineHost answers the requests of a worker, over frames and HTTP alike. It opens no sockets.

Requests arrive on the loop's thread, and nothing here blocks it. A malformed request, an exception of an engine and a
bug in this package are three different errors.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
import sys
import threading
import time
import traceback
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import psutil

from rolecall.errors import (
    EngineCreationError,
    EngineImportError,
    InternalError,
    ProtocolError,
    RolecallError,
    WorkerConfigurationError,
    told,
)
from rolecall.protocol import worker_methods as protocol
from rolecall.protocol.guard import Method, NoArguments
from rolecall.protocol.message import Message
from rolecall.protocol.worker_methods import FORKED_CHILDREN
from rolecall.tensors import functions
from rolecall.tensors.service import DataService
from rolecall.tensors.shard import binding
from rolecall.transport.codec.exceptions import format_traceback, full_name, message_of, said
from rolecall.transport.loop import Tasks
from rolecall.worker.calls import EngineCalls, Request
from rolecall.worker.context import seed_generators, seed_of
from rolecall.worker.engines import Engines
from rolecall.worker.loading import load_engine_class, load_function

Answer = Callable[[Any], Awaitable[Any]]
AskGuard = Callable[[Method[Any, Any], Message], Awaitable[Any]]

ASKED_OF_THE_GUARD = ("set_env", "alloc_ports", "fork", "kill_forked_worker")

log = logging.getLogger("rolecall")


class EngineHost:
    """The methods of a worker, by name.

    Args:
        ask_guard: Asks the worker's guard with a request of a method, and returns its answer.
        seed: What generators are seeded with before the first engine is made.
        setup: The path of a function that is called before that; empty for none.
    """

    def __init__(
        self,
        engines: Engines,
        data: DataService,
        ask_guard: AskGuard,
        loop: asyncio.AbstractEventLoop,
        seed: int | None,
        setup: str,
    ) -> None:
        self._engines, self._data, self._ask_guard, self._loop = engines, data, ask_guard, loop
        self._seed, self._setup, self._preparing = seed, setup, threading.Lock()
        self._started = time.monotonic()
        self._tasks = Tasks()
        answers: dict[str, Answer] = {
            "health": self._health,
            "metrics": self._metrics,
            "stacks": self._stacks,
            "destroy": self._destroy,
            "configure": self._configure,
            **{name: partial(ask_guard, protocol.METHODS[name]) for name in ASKED_OF_THE_GUARD},
        }
        calls = EngineCalls(engines, data, loop)
        self._starts: dict[str, Callable[[Request], object]] = {
            # Engines' arguments stay encoded: the thread that the engine runs on decodes them.
            protocol.CALL.name: lambda request: calls.start(request, protocol.CALL.parsed(request.meta)),
            protocol.CREATE_ENGINE.name: self._create_engine,
            **{name: partial(self._in_task, protocol.METHODS[name], answer) for name, answer in answers.items()},
            **{name: self._on_pool for name in protocol.METHODS if name.startswith("data.")},
        }

    @property
    def worker_id(self) -> str:
        return self._engines.worker_id

    def dispatch(self, request: Request) -> None:
        """Starts the method that a request names. Every request is answered."""
        try:
            start = self._starts.get(request.method)
            if start is None:
                raise ProtocolError("unknown request", request.method, sorted(protocol.METHODS))
            start(request)
        except Exception as e:  # a request is always answered
            self._fail(request, e)

    def _in_task(self, method: protocol.WorkerMethod, answer: Answer, request: Request) -> None:
        self._tasks.start(self._answer(method, answer, request))

    async def _answer(self, method: protocol.WorkerMethod, answer: Answer, request: Request) -> None:
        try:
            request.finish(await answer(method.parsed(request.args())))
        except Exception as e:  # a request is always answered
            self._fail(request, e)

    def _on_pool(self, request: Request) -> None:
        try:
            self._loop.run_in_executor(None, self._data_answer, request)  # copying memory would block the loop
        except RuntimeError:  # no further thread
            self._data_answer(request)

    def _fail(self, request: Request, error: Exception) -> None:
        """Answers with an error. One that is not a RolecallError is a bug in this package; its traceback is logged."""
        error = told(self.worker_id, error)
        if not isinstance(error, RolecallError):
            log.error("internal error in %r", request.method, exc_info=error)
            error = InternalError(self.worker_id, request.method, full_name(type(error)), message_of(error))
        request.fail(error)

    def _data_answer(self, request: Request) -> None:
        try:
            value = self._data.answer(request.method, request.args())
            request.finish(value, stable=request.method == "data.get")  # a shard's memory never changes
        except Exception as e:  # a request is always answered
            self._fail(request, e)

    # Engines

    def _create_engine(self, request: Request) -> None:
        params = protocol.CREATE_ENGINE.parsed(request.meta)
        name = params.engine_name or self.worker_id
        self._engines.reserve(name).submit(lambda: self._construct(request, name, params.engine))

    def _construct(self, request: Request, name: str, path: str) -> None:
        """Creates an engine, on its thread."""
        begun = time.monotonic()
        try:
            binding.bind(self._data)
            cls = self._load(path)
            args, kwargs = functions.localized(request.received())
            engine = cls(*args, **kwargs)
        except EngineImportError as e:
            self._engines.release(name)
            return request.fail(e)
        except BaseException as e:
            self._engines.release(name)
            text = format_traceback(e)
            log.error("the constructor of engine %r (%s) raised; its caller is told\n%s", name, path, text)
            return request.fail(EngineCreationError(self.worker_id, name, said(e), text))
        self._engines.add(name, engine)
        log.info("engine %r (%s) was made in %.2f s", name, path, time.monotonic() - begun)
        request.finish(protocol.EngineCreated(engine_name=name))

    def _load(self, path: str) -> type:
        """Loads the class of an engine; before the first one, sets the worker up."""
        with self._preparing:
            if self._setup:
                load_function(self._setup)()
                self._setup = ""
            cls = load_engine_class(path)
            if self._seed is not None:  # now that its module has imported what it draws with
                seed_generators(self._seed)
                self._seed = None
            return cls

    async def _destroy(self, params: protocol.Destroy) -> dict[str, str]:
        """Calls `destroy()` of all engines at the same time, each on its thread; returns problems by engine name."""
        names = self._engines.names() if params.engines is None else params.engines
        problems = await asyncio.gather(*(self._destroy_one(name, params.timeout) for name in names))
        return {name: problem for name, problem in zip(names, problems, strict=True) if problem}

    async def _destroy_one(self, name: str, timeout: float) -> str:
        hosted = self._engines.remove(name)
        if hosted is None:  # never created, or destroyed by another request
            return ""
        try:
            destroy = getattr(hosted.engine, "destroy", None)
            if destroy is not None:
                async with asyncio.timeout(timeout):
                    outcome = await hosted.thread.run(destroy)
                    if inspect.isawaitable(outcome):
                        await outcome
        except TimeoutError:
            return f"destroy() took more than {timeout:g} s"
        except BaseException as e:
            return f"destroy() raised {said(e)}"
        finally:
            self._engines.leave(hosted.thread)
        return ""

    # The worker itself

    async def _configure(self, params: protocol.Configure) -> protocol.Seeded:
        seed = params.config.get("seed", 0)
        try:
            seed = seed_of(int(seed), params.role, params.rank)
        except (TypeError, ValueError, OverflowError) as e:
            raise WorkerConfigurationError("bad seed", seed, "use a whole number") from e
        seed_generators(seed)
        return protocol.Seeded(seed=seed)

    async def _health(self, params: protocol.WorkerRequest) -> protocol.Health:
        forked = await self._ask_guard(FORKED_CHILDREN, NoArguments())
        worker = self.worker_id
        return protocol.Health(worker=worker, pid=os.getpid(), engines=self._engines.names(), forked_children=forked)

    async def _stacks(self, params: protocol.WorkerRequest) -> str:
        return thread_stacks()

    async def _metrics(self, params: protocol.WorkerRequest) -> dict[str, Any]:
        process = psutil.Process()
        cpu = process.cpu_times()
        return {
            "uptime_s": time.monotonic() - self._started,
            "cpu_s": cpu.user + cpu.system,
            "rss_bytes": process.memory_info().rss,
            "open_fds": process.num_fds(),
            "threads": process.num_threads(),
            "calls_begun": self._engines.progress.begun,
            "calls_ended": self._engines.progress.ended,
            "calls_waiting": self._engines.waiting(),
            **self._data.metrics(),
        }


def thread_stacks() -> str:
    """The Python stacks of all threads of this process, under the threads' names."""
    names = {t.ident: t.name for t in threading.enumerate()}
    return "\n".join(
        f"Thread {names.get(ident, ident)}\n" + "".join(traceback.format_stack(frame))
        for ident, frame in sys._current_frames().items()
    )
