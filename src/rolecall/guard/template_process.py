"""Owns the template process: starts it, requests forks, and replaces it when it dies or hangs. See `template.py`."""

import asyncio
import logging
import os
import signal
import socket
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from io import FileIO
from typing import NamedTuple

import msgspec

from rolecall.guard.children import Children, Exit
from rolecall.guard.environment import THREADS
from rolecall.guard.proc import Process, descendants_of, read_stat, send, snapshot
from rolecall.guard.spawn import spawn
from rolecall.guard.template import MAX_CHILDREN, TEMPLATE_NAME
from rolecall.protocol.environment import WORKER
from rolecall.protocol.fork import ForkSpec, TemplateReady, encode
from rolecall.protocol.guard_config import GuardConfig

FORK_S = 10.0  # a template that has not forked within this is stopped or stuck
PRELOAD_S = 300.0  # the first import of torch from a shared file system can take minutes
POLL_S = 1.0
ATTEMPTS = 3
_WORKER_ID_BYTES = 128

_log = logging.getLogger(__name__)


ForkRequest = tuple[ForkSpec, int]  # one child to fork, and its end of the control channel


class TemplateError(Exception):
    """The template process died repeatedly while importing."""


class _Running(NamedTuple):
    process: Process
    sock: socket.socket
    exit_future: "asyncio.Future[Exit]"

    @property
    def usable(self) -> bool:
        return not self.exit_future.done() and not _stopped(self.process)


class TemplateProcess:
    """The template process of a guard."""

    def __init__(
        self, config: GuardConfig, env: dict[str, str], children: Children, counts: Counter[str], log: int
    ) -> None:
        # One thread while modules load: thread pools do not survive a fork.
        self.env = env | dict.fromkeys(THREADS, "1") | {WORKER: " " * _WORKER_ID_BYTES}
        self._config, self._children, self._counts, self._log = config, children, counts, log
        self._lock = asyncio.Lock()
        self._running: _Running | None = None
        self._starting: Process | None = None
        self._closed = self._broken = False

    async def warm_up(self) -> None:
        """Starts the template before it is needed."""
        async with self._lock:
            await self._ensure()

    async def fork(self, requests: Sequence[ForkRequest]) -> list[Process | str]:
        """Forks children, all at once. Returns for each its process, or why it was not forked.

        If the template dies, the requests for which it has forked no child are repeated on a new one; no child is
        forked twice. The caller closes the control descriptors.

        Raises:
            TemplateError, OSError: The template cannot be started, and no child was forked.
        """
        results: dict[int, Process | str] = {}
        async with self._lock:
            for _ in range(ATTEMPTS):
                missing = [index for index in range(len(requests)) if index not in results]
                try:
                    for first in range(0, len(missing), MAX_CHILDREN):
                        batch = missing[first : first + MAX_CHILDREN]
                        children = await self._request_forks([requests[index] for index in batch])
                        results |= {batch[place]: child for place, child in children.items()}
                except (TemplateError, OSError):
                    if not results:
                        raise
                if len(results) == len(requests):
                    break
        return [results.get(index, "the template process died while forking") for index in range(len(requests))]

    async def _request_forks(self, requests: Sequence[ForkRequest]) -> dict[int, Process | str]:
        running = await self._ensure()
        read_end, write_end = os.pipe2(os.O_CLOEXEC)
        with ExitStack() as ours, os.fdopen(read_end, "rb", buffering=0) as pipe:
            ours.callback(os.close, write_end)
            specs = os.memfd_create("rolecall-fork-specs", os.MFD_CLOEXEC)
            ours.callback(os.close, specs)
            with open(specs, "wb", closefd=False) as file:  # whole, or EFBIG is raised
                file.write(encode([spec for spec, _ in requests]))
            try:
                socket.send_fds(running.sock, [b"fork"], [specs, write_end, *(control for _, control in requests)])
            except OSError:  # it is dead, or stopped and its queue is full
                await self._kill(running)
                return {}
            ours.close()
            return _parse(await self._read_children(running, pipe))

    async def _read_children(self, running: _Running, pipe: FileIO) -> str:
        """Reads until no child is still to come. A template that is stopped or makes no progress is killed."""
        reader = asyncio.StreamReader()
        protocol = asyncio.StreamReaderProtocol(reader)
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, pipe)
        text, idle_s, kills = b"", 0.0, 0
        while not reader.at_eof() and kills <= ATTEMPTS:
            try:
                text += await asyncio.wait_for(reader.read(1 << 16), POLL_S)
                idle_s = 0.0
                continue
            except TimeoutError:
                idle_s += POLL_S
            if not kills and (idle_s >= FORK_S or _stopped(running.process)):
                _log.warning("the template process (pid %d) is stopped, or did not fork in time", running.process.pid)
                await self._kill(running)
                kills = 1
            if kills:
                _kill_children()
                kills += 1
        transport.close()
        return text.decode()

    async def _ensure(self) -> _Running:
        if self._running and self._running.usable:
            return self._running
        if self._running:
            await self._kill(self._running)
            self._counts["template_respawns_total"] += 1
        for _ in range(ATTEMPTS):
            if self._closed or self._broken:
                break
            self._running = await self._spawn()
            if self._running:
                return self._running
        self._broken = True  # permanently: a failing import is not repeated every second
        raise TemplateError("the template process dies while it imports; see the guard's log")

    async def _spawn(self) -> _Running | None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        paths = msgspec.json.encode(self._config.sys_path).decode()
        modules = [*self._config.preload, self._config.entry.partition(":")[0]]
        argv = [self._config.python, "-m", "rolecall.guard.template"]
        argv += [str(theirs.fileno()), ",".join(modules), paths]
        try:
            process = spawn("template", argv, self.env, log=self._log, cwd=self._config.cwd, keep=[theirs.fileno()])
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
        self._starting = process
        exit_future = self._children.watch(process)
        try:
            ready = msgspec.json.decode(await _ready_message(process, ours), type=TemplateReady)
        except (TimeoutError, OSError, msgspec.DecodeError):  # too slow, dead, stopped
            send(process, signal.SIGKILL)
            ours.close()
            return None
        finally:
            self._starting = None
        for name, reason in ready.skipped.items():
            _log.info("preload of %s skipped: %s", name, reason)
        if ready.threads > 1:
            _log.warning("the preloaded modules started %d threads, which do not survive a fork", ready.threads)
        return _Running(process, ours, exit_future)

    async def _kill(self, running: _Running) -> None:
        send(running.process, signal.SIGKILL)
        running.sock.close()
        await running.exit_future
        if self._running is running:
            self._running = None

    def healthy(self) -> bool:
        """False when the template is stopped or dead and should be replaced before it is needed."""
        return self._running is None or self._lock.locked() or self._running.usable

    async def close(self) -> None:
        """Kills the template. May be called twice."""
        self._closed = True
        if self._starting:
            send(self._starting, signal.SIGKILL)
        async with self._lock:
            if self._running:
                await self._kill(self._running)


async def _ready_message(process: Process, sock: socket.socket) -> bytes:
    """The template's message after its imports; empty if it died or was stopped.

    Raises:
        TimeoutError: The imports take too long.
    """
    async with asyncio.timeout(PRELOAD_S):
        while not _stopped(process):
            with suppress(TimeoutError):
                return await asyncio.wait_for(asyncio.get_running_loop().sock_recv(sock, 1 << 16), POLL_S)
    return b""


def _stopped(process: Process) -> bool:
    stat = read_stat(process.pid)
    return stat is not None and stat.state in "Tt"


def _kill_children() -> None:
    """Kills the forked children that are not workers yet, so that these can be forked again."""
    stats = snapshot()
    for pid in descendants_of([os.getpid()], stats):
        if stats[pid].name == TEMPLATE_NAME:
            send(stats[pid].process, signal.SIGKILL)


def _parse(text: str) -> dict[int, Process | str]:
    """Lines `index pid start`, or `index - reason` where the fork failed."""
    results: dict[int, Process | str] = {}
    for line in text.splitlines():
        index, pid, rest = line.split(" ", 2)
        results[int(index)] = f"fork failed: {rest}" if pid == "-" else Process(int(pid), int(rest))
    return results
