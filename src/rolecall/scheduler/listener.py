"""Where guards connect: the controller's listener, the lease, and what guards report. It starts no process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from rolecall.errors import AuthenticationError, ProtocolError, WorkerConfigurationError
from rolecall.guard.proc import read_stat
from rolecall.placement.base import Explain
from rolecall.protocol.guard_hello import GuardHello
from rolecall.protocol.message import from_plain
from rolecall.scheduler.guards import EventSink, GuardProxy
from rolecall.scheduler.run import Run
from rolecall.transport.loop import IOThread
from rolecall.transport.peer import Peer
from rolecall.transport.server import Hello, Server

RENEW_S = 3.0  # a silent guard is lost after four of them at the most
LOOK_S = 1.0
STOPPED_LOOKS = 5  # so many in a row: a debugger's short stop is no news


class GuardListener:
    """Expects guards by id, gives each its conversation, and renews their leases."""

    def __init__(
        self,
        run: Run,
        io: IOThread,
        *,
        lease_s: float,
        on_event: EventSink,
        on_lost: Callable[[GuardProxy], None],
    ) -> None:
        self._run, self._io, self._lease_s = run, io, lease_s
        self._on_event, self._on_lost = on_event, on_lost
        self._guards: dict[str, GuardProxy] = {}
        self._server = Server(run.token, loop=io.loop, on_peer=self._arrived)
        self._tasks: list[asyncio.Task[None]] = []
        self.addresses = [f"unix:{run.controller_socket}"]

    def open(self) -> None:
        self._io.run(self._open())

    def close(self) -> None:
        self._io.run(self._close())

    def listen(self, ip: str) -> None:
        """Listens on an address of this host too, for guards elsewhere.

        Raises:
            OSError: It is no address of this host.
        """
        port = self._io.run(self._listen(ip))
        self.addresses.append(f"tcp:[{ip}]:{port}" if ":" in ip else f"tcp:{ip}:{port}")

    def expect(self, guard_id: str, explain: Explain | None = None) -> GuardProxy:
        """Announces a guard that will connect. `explain`: who knows why it ended, if anybody does."""
        guard = GuardProxy(guard_id, self._io, self._on_event, self._on_lost, explain)
        self._guards[guard_id] = guard
        return guard

    def forget(self, guard_id: str) -> None:
        """Closes the conversation with a guard that has ended; nothing happens when that was done before."""
        guard = self._guards.pop(guard_id, None)
        if guard is not None:
            self._io.run(self._hang_up(guard))

    def guard(self, guard_id: str) -> GuardProxy:
        """The guard of that id.

        Raises:
            WorkerConfigurationError: It was never expected.
        """
        found = self.find(guard_id)
        if found is None:
            expected = "a placement announces its guards with context.expect()"
            raise WorkerConfigurationError("a guard that was not announced", guard_id, expected)
        return found

    def find(self, guard_id: str) -> GuardProxy | None:
        """The guard of that id, unless it was forgotten."""
        return self._guards.get(guard_id)

    def all(self) -> list[GuardProxy]:
        return list(self._guards.values())

    async def _open(self) -> None:
        self._server.listen_unix(str(self._run.controller_socket))
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self._renew()), loop.create_task(self._look())]

    async def _listen(self, ip: str) -> int:
        return self._server.listen_tcp(ip)

    async def _hang_up(self, guard: GuardProxy) -> None:
        guard.peer.close()

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
            await asyncio.sleep(min(self._lease_s / 4, RENEW_S))

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
        said = from_plain(GuardHello, hello.info, "a guard")
        guard = self._guards.get(said.guard_id)
        if guard is None or said.run_id != self._run.run_id:
            raise AuthenticationError(said.guard_id, "of another run")
        if guard.cut or guard.lost is not None:
            raise ProtocolError("this guard was given up with its workers; it is not taken back", guard.guard_id)
        guard.arrive(said)
        return guard.peer


def _is_stopped(guard: GuardProxy) -> bool:
    if not guard.here or guard.lost is not None:
        return False
    stat = read_stat(guard.pid)
    return stat is not None and stat.state in "Tt"
