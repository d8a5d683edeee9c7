"""The main function of a worker process: it is configured by its guard, listens, and serves until it is stopped."""

from __future__ import annotations

import asyncio
import faulthandler
import io
import logging
import os
import signal
import socket
import stat
import sys
import traceback
import types
from collections.abc import Iterator, Sequence
from typing import Any, cast

from rolecall.errors import WorkerConfigurationError
from rolecall.protocol.environment import CONTROL
from rolecall.protocol.guard import Method
from rolecall.protocol.message import Message
from rolecall.protocol.worker_methods import CONFIGURE, SET_ENV, TASKS, WorkerConfig
from rolecall.tensors.shard import binding
from rolecall.transport.http.router import Application, AsgiRoute
from rolecall.transport.link import Link
from rolecall.transport.loop import Tasks, new_loop
from rolecall.transport.peer import Incoming, Peer
from rolecall.worker.loading import ControllerMain, import_main_by_name
from rolecall.worker.node import WorkerNode


def run(control: socket.socket, app: AsgiRoute | None = None) -> None:
    """Serves until the guard closes the control channel.

    Args:
        control: Connected to the guard.
        app: Answers the HTTP requests that are not the worker's own.
    """
    _prepare_signals()
    _prepare_logging()
    for stream in (sys.stdout, sys.stderr):
        cast(io.TextIOWrapper, stream).reconfigure(line_buffering=True)  # as at every start
    loop = new_loop()
    asyncio.set_event_loop(loop)
    process = _Process(loop, app)
    try:
        loop.run_until_complete(process.serve(control))
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    if process.terminated:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.raise_signal(signal.SIGTERM)  # its exit status names it


def _prepare_signals() -> None:
    """Signals end the process by default action, so that its exit status names them; the guard stops it by request."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    faulthandler.enable(all_threads=True)  # a crash in native code leaves the Python stacks in the log
    faulthandler.register(signal.SIGUSR2, all_threads=True, chain=False)


def _prepare_logging() -> None:
    """The runtime's own lines go to the worker's log, whatever the engines do with logging."""
    log, handler = logging.getLogger("rolecall"), logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s rolecall: %(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False


class _Process:
    """The worker's end of the control channel: takes the configuration and forwards requests to the guard."""

    def __init__(self, loop: asyncio.AbstractEventLoop, app: AsgiRoute | None) -> None:
        self._loop, self._app = loop, app
        self._tasks = Tasks()
        self.terminated = False
        self._node: WorkerNode | None = None
        self._stopped = asyncio.Event()
        self._guard = Peer("guard", loop=loop, handler=self, on_detached=lambda error: self._stopped.set())

    async def serve(self, control: socket.socket) -> None:
        self._guard.attach(Link(control, loop=self._loop))
        if self._app is not None:
            self._loop.add_signal_handler(signal.SIGTERM, self._terminate)
        await self._stopped.wait()
        if self._node is not None:
            await self._node.close()
        if self._app is not None:
            await self._app.close()

    def _terminate(self) -> None:
        """SIGTERM: an app has a shutdown of its own."""
        self.terminated = True
        self._stopped.set()

    def dispatch(self, incoming: Incoming) -> None:
        self._tasks.start(self._answer(incoming))

    async def _answer(self, incoming: Incoming) -> None:
        try:
            if incoming.method == CONFIGURE.name:
                await self._configure(incoming.message(CONFIGURE.request, "the guard"))
            elif incoming.method == SET_ENV.name:
                os.environ.update(incoming.message(SET_ENV.request, "the guard").env)
            incoming.finish(task_stacks(self._loop) if incoming.method == TASKS.name else None)
        except Exception as e:  # the guard gets the error, and reports why the worker is not ready
            incoming.fail(e)

    async def _configure(self, config: WorkerConfig) -> None:
        _set_paths(config.guard.sys_path, config.guard.main)
        self._node = WorkerNode(config, self._loop, self._ask_guard, self._app)
        binding.set(self._node.data)
        if self._app is not None:
            await self._app.start()
        self._node.start()

    async def _ask_guard(self, method: Method[Any, Any], request: Message) -> Any:
        return await self._guard.request(method.name, request, answer=method.answer)


def task_stacks(loop: asyncio.AbstractEventLoop) -> str:
    """Where the tasks of a loop wait, each from its outermost coroutine inwards: `async` methods above all."""
    text = io.StringIO()
    for task in sorted(asyncio.all_tasks(loop), key=lambda task: task.get_name()):
        text.write(f"Task {task.get_name()}\n")
        for frame in _awaited(task.get_coro()):
            text.writelines(traceback.format_list(traceback.extract_stack(frame, 1)))
    return text.getvalue()


def _awaited(waiting: Any) -> Iterator[types.FrameType]:
    """The frames of a coroutine and of those that it awaits."""
    while (frame := getattr(waiting, "cr_frame", None) or getattr(waiting, "ag_frame", None)) is not None:
        yield frame
        waiting = getattr(waiting, "cr_await", None) or getattr(waiting, "ag_await", None)


def _set_paths(sys_path: list[str], main: str) -> None:
    sys.path[:] = [*sys_path, *(p for p in sys.path if p not in sys_path)]
    # Without a program of the controller's `__main__` is empty: what this process was started with must not show.
    sys.modules["__main__"] = ControllerMain(main) if main else types.ModuleType("__main__")


def serve(app: Application, *, public: Sequence[str] = ()) -> None:
    """Serves an ASGI application and hosts engines, on the worker's first port, until the worker is ended.

    A module calls it that is started as a worker, by `role.fork("proxy", "package.module")` or
    `s.start("proxy", cmd="package.module")`. The worker is then one like those that host engines: `create_engine`,
    `call`, `submit`, streams, handles, `set_worker_env`, `stacks` and reports of its death work on it. Requests for the
    paths in docs/http.md are the worker's, all others the application's. `rolecall.current_worker()` works in its
    handlers and in its lifespan. Bodies of requests have at most 64 MiB.

    Args:
        app: The application (ASGI 3, `http` and `lifespan`): Starlette's or FastAPI's, for instance.
        public: Paths that the application serves without the run's token, since it has credentials of its own, say:
            `"/v1/models"`, or all below `"/v1/"`. All other requests need the token, as everywhere in a run; those of
            the worker always do. Bodies of requests without it have at most 1 MiB.

    Raises:
        WorkerConfigurationError: `app` cannot be called, `public` is a text or has a path that does not begin with `/`,
            or this process was not started as a worker that is a dotted module.
    """
    route = AsgiRoute(app, public)
    import_main_by_name()
    run(inherited_control(), route)


def inherited_control() -> socket.socket:
    """The socket to the guard that this process was started with.

    Raises:
        WorkerConfigurationError: There is none.
    """
    number = os.environ.pop(CONTROL, "")
    try:
        if number and stat.S_ISSOCK(os.fstat(int(number)).st_mode):
            os.set_inheritable(int(number), False)
            return socket.socket(fileno=int(number))
    except OSError:  # this is a child of the module, which has inherited its environment alone
        pass
    how = 'role.fork("proxy", "package.module"), or s.start("proxy", cmd="package.module")'
    expected = f"start the module as a worker: {how}, without a `ready` of its own"
    raise WorkerConfigurationError("rolecall.serve() was called outside of a run", None, expected)
