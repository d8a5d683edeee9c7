"""Where guards call home: the controller's listener, the lease, and what guards report. It starts no process."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import Any

from rolecall.errors import AuthenticationError
from rolecall.guard.proc import read_stat
from rolecall.rpc.loop import IOThread
from rolecall.rpc.peer import Peer
from rolecall.rpc.server import Hello, Server
from rolecall.schedulers.guards import EventSink, GuardProxy
from rolecall.schedulers.run import Run

LOOK_S = 1.0
STOPPED_LOOKS = 5  # so many in a row: a debugger's short stop is no news


class Hub:
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

    def open(self) -> None:
        self._io.run(self._open())

    def close(self) -> None:
        self._io.run(self._close())

    def expect(self, guard_id: str) -> GuardProxy:
        """Announces a guard that will call."""
        guard = GuardProxy(guard_id, self._io, self._on_event, self._on_lost)
        self._guards[guard_id] = guard
        return guard

    def guards(self) -> list[GuardProxy]:
        return list(self._guards.values())

    @property
    def addresses(self) -> list[str]:
        return [f"unix:{self._run.controller_socket}"]

    async def _open(self) -> None:
        self._server.listen_unix(str(self._run.controller_socket))
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self._renew()), loop.create_task(self._look())]

    async def _close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await self._server.close()
        for guard in self.guards():
            guard.peer.close()

    async def _renew(self) -> None:
        while True:
            for guard in self.guards():
                if guard.info and guard.lost is None:
                    guard.peer.notify("lease")
            await asyncio.sleep(self._lease_s / 4)

    async def _look(self) -> None:
        """Notices guards of this host that a signal has stopped; they cannot say so themselves."""
        stopped: dict[str, int] = {}
        while True:
            await asyncio.sleep(LOOK_S)
            for guard in self.guards():
                count = stopped.get(guard.guard_id, 0) + 1 if _is_stopped(guard) else 0
                stopped[guard.guard_id] = count
                if count >= STOPPED_LOOKS:
                    guard.stall("it is stopped by a signal (state T); send it SIGCONT, or end the run")

    def _arrived(self, hello: Hello) -> Peer:
        facts: dict[str, Any] = hello.info
        guard = self._guards.get(str(facts.get("guard_id")))
        if guard is None or facts.get("run_id") != self._run.run_id:
            raise AuthenticationError(str(facts.get("guard_id")), "of another run")
        guard.arrive(facts)
        return guard.peer


def _is_stopped(guard: GuardProxy) -> bool:
    if not guard.info or guard.lost is not None or guard.info.get("host") != os.uname().nodename:
        return False
    stat = read_stat(int(guard.info["pid"]))
    return stat is not None and stat.state in "Tt"
