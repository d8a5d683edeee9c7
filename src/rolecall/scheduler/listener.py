"""Where guards connect: the controller's listener, the lease, and what a placement is given. It starts no process."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Sequence
from itertools import chain

from rolecall.errors import AuthenticationError, ProtocolError, WorkerConfigurationError
from rolecall.guard.proc import identify, read_stat
from rolecall.placement.base import ExpectedGuard, Explain
from rolecall.placement.launching import current_folder, python_path
from rolecall.protocol.guard import SHUTDOWN, Shutdown
from rolecall.protocol.guard_config import GuardConfig
from rolecall.scheduler.calls import controller_main
from rolecall.scheduler.guards import EventSink, GuardProxy, ask_all
from rolecall.scheduler.keywords import RunOptions
from rolecall.scheduler.run import Run
from rolecall.transport.address import this_host
from rolecall.transport.loop import IOThread
from rolecall.transport.peer import Peer
from rolecall.transport.server import Hello, Server

RENEW_S = 3.0  # a silent guard is lost after four of them at the most
LOOK_S = 1.0
STOPPED_LOOKS = 5  # so many in a row: a debugger's short stop is no news
SHUTDOWN_MARGIN_S = 5.0

log = logging.getLogger("rolecall")


class GuardListener:
    """Expects guards by id, gives each its conversation, and renews their leases: the `PlacementContext` of a run.

    Args:
        options: Of the run, for guards and their workers.
    """

    def __init__(self, run: Run, io: IOThread, options: RunOptions) -> None:
        self._run, self.io, self._options = run, io, options
        self.run_id, self.experiment, self.run_dir = run.run_id, run.experiment, run.run_dir
        self.start_timeout, self.grace_s = options.start_timeout, options.grace_s
        self._guards: dict[str, GuardProxy] = {}
        self.waiting: dict[str, str] = {}
        self._server = Server(run.token, loop=io.loop, on_peer=self._arrived)
        self._tasks: list[asyncio.Task[None]] = []
        self.addresses = [f"unix:{run.controller_socket}"]

    @property
    def closing(self) -> bool:
        return self._run.closing

    def open(self, on_event: EventSink, on_waiting: Callable[[], None] = lambda: None) -> None:
        """Begins to listen.

        Args:
            on_event: Gets what guards report, and their loss, on the I/O thread.
            on_waiting: Called when a role waits for something else.
        """
        self._on_event, self._on_waiting = on_event, on_waiting
        self.io.run(self._open())

    def close(self) -> None:
        self.io.run(self._close())

    def listen(self, ip: str) -> None:
        try:
            port = self.io.run(self._listen(ip))
        except OSError as e:
            what = f"the controller cannot listen on {ip}: {e.strerror or e}"
            expected = "pass an address of this host that the cluster reaches: ip=..."
            raise WorkerConfigurationError(what, None, expected) from e
        self.addresses.append(f"tcp:[{ip}]:{port}" if ":" in ip else f"tcp:{ip}:{port}")

    def guard_config(self, guard_id: str, *, ip: str = "") -> GuardConfig:
        me = identify(os.getpid())
        assert me is not None
        return GuardConfig(
            **self._options.of_guards() | {"experiment": self._run.experiment, "trial": self._run.trial},
            run_id=self.run_id,
            guard_id=guard_id,
            token=self._run.token,
            controller=self.addresses,
            ip=ip,
            run_dir=str(self.run_dir),
            runtime_dir=str(self._run.runtime_dir),
            cwd=current_folder(),
            sys_path=python_path(),
            main=controller_main(),
            controller_host=this_host(),
            controller_pid=me.pid,
            controller_start=me.start,
        )

    def expect(self, guard_id: str, explain: Explain | None = None) -> GuardProxy:
        guard = self._guards[guard_id] = GuardProxy(guard_id, self.io, self._on_event, explain)
        return guard

    def waits(self, role: str, what: str) -> None:
        if self.waiting.get(role, "") != what:
            self.waiting[role] = what
            if not what:
                del self.waiting[role]
            self._on_waiting()

    def forget(self, guard: ExpectedGuard) -> None:
        if (known := self._guards.pop(guard.guard_id, None)) is not None:
            known.peer.close()

    def shut_down(self, guards: Sequence[ExpectedGuard], grace_s: float) -> None:
        known = [self._guards[guard.guard_id] for guard in guards if guard.guard_id in self._guards]
        for guard in known:
            guard.ending = True
        there = [(guard, Shutdown(grace_s=grace_s)) for guard in known if guard.connected and guard.lost is None]
        reports = ask_all(SHUTDOWN, there, grace_s + SHUTDOWN_MARGIN_S)
        for survivor in chain.from_iterable(report.survivors for report in reports if report is not None):
            log.warning("SIGKILL did not end %s", survivor)

    def guard(self, guard_id: str) -> GuardProxy:
        """The guard of that id.

        Raises:
            WorkerConfigurationError: It was never expected.
        """
        if guard_id not in self._guards:
            expected = "a placement announces its guards with context.expect()"
            raise WorkerConfigurationError("a guard that was not announced", guard_id, expected)
        return self._guards[guard_id]

    def all(self) -> list[GuardProxy]:
        return list(self._guards.values())

    async def _open(self) -> None:
        self._server.listen_unix(str(self._run.controller_socket))
        self._tasks = [self.io.loop.create_task(self._renew()), self.io.loop.create_task(self._look())]

    async def _listen(self, ip: str) -> int:
        return self._server.listen_tcp(ip)

    async def _close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await self._server.close()
        for guard in self.all():
            guard.peer.close()

    async def _renew(self) -> None:
        while True:
            for guard in self.all():
                guard.renew()
            await asyncio.sleep(min(self._options.lease_s / 4, RENEW_S))

    async def _look(self) -> None:
        """Notices guards of this host that a signal has stopped; they cannot say so themselves."""
        stopped: dict[str, int] = {}
        while True:
            await asyncio.sleep(LOOK_S)
            for guard in self.all():
                count = stopped.get(guard.guard_id, 0) + 1 if _is_stopped(guard) else 0
                stopped[guard.guard_id] = count
                if count >= STOPPED_LOOKS:
                    guard.stall("it is stopped by a signal (state T); send it SIGCONT, or end the run")

    def _arrived(self, hello: Hello) -> Peer:
        said = hello.guard
        guard = self._guards.get(hello.name)
        if said is None or guard is None or hello.run_id != self.run_id:
            raise AuthenticationError(hello.name, "of another run")
        if guard.connected and not guard.cut:  # whoever has the token could take its place
            raise ProtocolError("this guard has connected already", guard.guard_id)
        if guard.cut or guard.lost is not None:
            raise ProtocolError("this guard was given up with its workers; it is not taken back", guard.guard_id)
        guard.arrive(said)
        return guard.peer


def _is_stopped(guard: GuardProxy) -> bool:
    if not guard.here or guard.lost is not None:
        return False
    stat = read_stat(guard.state.pid)
    return stat is not None and stat.state in "Tt"
