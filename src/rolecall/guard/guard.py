"""The guard itself: connects a supervisor to the controller, keeps the lease, and ends with all that it started."""

import asyncio
import logging
import os
import signal
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import msgspec

from rolecall.errors import RolecallError
from rolecall.guard import host, runtime
from rolecall.guard.lease import Lease
from rolecall.guard.proc import Process, alive
from rolecall.guard.requests import ControllerRequests, WorkerRequests, guard_server
from rolecall.guard.supervisor import Supervisor
from rolecall.guard.sweep import clean_abandoned
from rolecall.protocol import events
from rolecall.protocol.guard_config import GuardConfig
from rolecall.protocol.message import from_json
from rolecall.transport.client import Client
from rolecall.transport.files import FileThread, make_directories, opener
from rolecall.transport.incoming import Incoming
from rolecall.transport.loop import new_loop
from rolecall.transport.peer import Peer
from rolecall.transport.threads import in_thread

TICK_S = 1.0
LOG_TICK_S = 0.2
LAST_LINES_S = 2.0
LONGEST_NOTICE = 64 << 10
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

_log = logging.getLogger(__name__)


class Guard:
    """The process of a run on one host. Everything runs on one event loop, in the main thread."""

    def __init__(self, config: GuardConfig, loop: asyncio.AbstractEventLoop, files: FileThread) -> None:
        self._config, self._loop = config, loop
        self._lease = Lease(config.lease_s, time.monotonic())
        self._supervisor = Supervisor(config, loop, self._lease, WorkerRequests, self._notify, _log_file(config), files)
        self._server = guard_server(self._supervisor, config, loop)
        self._stop: asyncio.Future[str] = loop.create_future()
        self._controller = Process(config.controller_pid, config.controller_start)
        self._controller_pidfd = -1
        self._reaper = os.getppid()
        peer = Peer(
            "controller",
            loop=loop,
            handler=ControllerRequests(self._supervisor, self._stop_soon),
            on_notify=self._on_notify,
            on_attached=lambda: self._lease.connected(time.monotonic()),
            on_detached=self._on_disconnected,
        )
        self._client = Client(peer, config.controller, config.token, host.hello(config))

    async def run(self) -> None:
        """Serves until the controller, a signal or the lease ends it."""
        for number in STOP_SIGNALS:
            self._loop.add_signal_handler(number, self._on_signal, number)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
        self._watch_controller()
        self._server.listen_unix(runtime.guard_socket(self._config.runtime_dir, self._config.guard_id))
        if self._config.notices:
            self._supervisor.spawn_task(forward_notices(self._notify))
        self._supervisor.warm_up()
        if not self._controller.pid:  # else it has done so
            self._supervisor.spawn_task(in_thread(clean_abandoned, Path(self._config.runtime_dir).parent))
        self._supervisor.spawn_task(self._every(TICK_S, self._tick))
        self._supervisor.spawn_task(self._every(LOG_TICK_S, self._supervisor.copy_logs))
        reason = await self._stop
        _log.info("ending: %s", reason)
        await self._supervisor.shutdown(0.0)
        await self._close()

    def _on_signal(self, number: int) -> None:
        living = os.getppid() == self._reaper
        self._stop_soon(f"asked to by {signal.Signals(number).name}" if living else "its reaper was killed")

    def _stop_soon(self, reason: str) -> None:
        """Ends the guard soon. The first reason counts."""
        if not self._stop.done():
            self._stop.set_result(reason)

    async def _close(self) -> None:
        self._client.close()
        if self._controller_pidfd >= 0:
            self._loop.remove_reader(self._controller_pidfd)
        self._supervisor.close()
        await self._server.close()

    async def _every(self, pause: float, work: Callable[[], Awaitable[None]]) -> None:
        while True:
            await asyncio.sleep(pause)
            try:
                await work()
            except Exception:  # observation must continue, whatever one read of /proc or a full disk raises
                _log.exception("%s failed", work)

    async def _tick(self) -> None:
        self._check_lease()
        await self._supervisor.tick()

    # The controller

    def _on_notify(self, incoming: Incoming) -> None:
        if incoming.method == events.LEASE:
            self._lease.renew(time.monotonic())
            self._client.peer.notify(events.ALIVE)

    def _on_disconnected(self, error: Exception | None) -> None:
        self._lease.disconnected()
        self._check_lease()

    def _watch_controller(self) -> None:
        """On the controller's host its death is noticed at once, even if a child of it keeps the connection open."""
        if self._controller.pid:
            with suppress(OSError):
                self._controller_pidfd = os.pidfd_open(self._controller.pid)
                self._loop.add_reader(self._controller_pidfd, self._on_controller_exit)

    def _on_controller_exit(self) -> None:
        self._loop.remove_reader(self._controller_pidfd)
        self._check_lease()

    def _check_lease(self) -> None:
        now = time.monotonic()
        local = bool(self._controller.pid)
        living = local and alive(self._controller)
        if living:
            self._lease.renew(now)  # a controller that is stopped by Ctrl-Z or a debugger cannot renew the lease
        if self._client.peer.closed:
            self._stop_soon("the controller refused the guard")
        reason = self._lease.end_reason(now, controller_dead=local and not living)
        if reason:
            self._stop_soon(reason)

    def _notify(self, event: events.Event) -> None:
        """Notifies the controller of an event."""
        topic = events.topic_of(event)
        try:
            self._client.peer.notify(topic, event)
        except RolecallError as error:
            _log.warning("the controller was not notified of %s: %s", topic, error)


async def forward_notices(notify: Callable[[events.Notice], None], fd: int = 0) -> None:
    """Passes notices, for instance a cluster's warnings, from the standard input on, until its end: one JSON a line."""
    reader = asyncio.StreamReader(LONGEST_NOTICE)
    protocol = asyncio.StreamReaderProtocol(reader)
    pipe = os.fdopen(os.dup(fd), "rb", buffering=0)  # some event loops close what they are given
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, pipe)
    try:
        async for line in reader:
            if line.endswith(b"\n"):
                _forward(notify, line)
    except (OSError, ValueError) as error:  # ValueError: a line that is too long
        _log.warning("no further notices: %s", error)
    finally:
        transport.close()


def _forward(notify: Callable[[events.Notice], None], line: bytes) -> None:
    try:
        notify(msgspec.json.decode(line, type=events.Notice))
    except msgspec.DecodeError as error:
        _log.warning("ignored on stdin: not a notice: %r: %s", line[:200], error)


def _log_file(config: GuardConfig) -> str:
    return str(Path(config.run_dir, "logs", f"guard-{config.guard_id}.log"))


def main(raw: bytes) -> int:
    """Runs a guard until its end; returns its exit status."""
    config = host.resolved(from_json(GuardConfig, raw, "the controller"))
    files = FileThread("files of the run")
    _log_to(Path(_log_file(config)), files)
    loop = new_loop(uvloop=False)  # uvloop handles SIGCHLD itself, and the guard handles no calls
    asyncio.set_event_loop(loop)
    try:
        loop.run_until_complete(Guard(config, loop, files).run())
    except BaseException:
        _log.exception("the guard failed; its reaper kills what it owned")
        raise
    finally:
        files.drain(LAST_LINES_S)
    return 0


class _ByThread(logging.Handler):
    """Hands records to another handler, on the thread for files."""

    def __init__(self, handler: logging.Handler, files: FileThread) -> None:
        super().__init__()
        self._handler, self._files = handler, files

    def emit(self, record: logging.LogRecord) -> None:
        self._files.submit(partial(self._handler.handle, record))


def _log_to(path: Path, files: FileThread) -> None:
    make_directories(path.parent)
    handler = logging.StreamHandler(open(path, "a", opener=opener))  # noqa: SIM115 - open until the end
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[_ByThread(handler, files)], force=True)
