"""One machine: one guard, started as a child of the controller, ready before the first role asks for it."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Sequence

from rolecall.errors import WorkerCreationError, explained
from rolecall.placement.base import PlacementContext
from rolecall.placement.guard_process import end_guard, start_guard
from rolecall.placement.host_placement import HostPlacement
from rolecall.placement.launching import connected, python_path
from rolecall.placement.plan import base_environment
from rolecall.protocol.environment import marks
from rolecall.protocol.message import to_json
from rolecall.transport.files import opener

GUARD_TIMEOUT_S = 60.0


class LocalPlacement(HostPlacement):
    """Workers on this machine.

    Args:
        ip: Address under which workers are reached; loopback, since the run is on one machine.
        devices: Names of the devices to give out; by default what the visible-devices variable lists, else what
            is counted.
        oversubscribe: Share devices in turn when more are asked for than are free.

    Attributes:
        guard: The one of this machine, once it is open.
    """

    name = "local"

    def __init__(
        self, *, ip: str = "127.0.0.1", devices: Sequence[str | int] | None = None, oversubscribe: bool = False
    ) -> None:
        super().__init__(devices=devices, oversubscribe=oversubscribe)
        self._ip = ip

    def open(self, context: PlacementContext) -> None:
        self._context, self._replacing, self._made = context, threading.Lock(), 0
        self._start()

    def _start(self) -> None:
        """Starts a guard. Who could not keeps the last one, which the next start replaces then."""
        guard_id = f"g{self._made}"
        context, log = self._context, self._context.run_dir / "logs" / f"guard-{guard_id}.log"
        env = base_environment(os.environ, python_path()) | marks(context.run_id, guard_id)
        config = to_json(context.guard_config(guard_id, ip=self._ip))
        with open(log, "ab", opener=opener) as out:
            guard = context.expect(guard_id)
            try:
                reaper = start_guard(config, env, out.fileno())
            except OSError:
                context.forget(guard)
                raise
        self.guard, self._reaper, self._log, self._made = guard, reaper, log, self._made + 1

    def _guard_for(self, role: str) -> str:
        with self._replacing:
            if self.guard.lost is not None or self._reaper.poll() is not None:
                self._end_reaper()  # which sees all dead that the lost guard owned
                try:
                    self._start()
                except OSError as e:
                    raise WorkerCreationError(
                        role, f"its guard was lost and no other could be started: {explained(e)}"
                    ) from e
            guard, reaper, log = self.guard, self._reaper, self._log
        return connected(guard, reaper, GUARD_TIMEOUT_S, log)

    def replace_guard(self, role: str) -> str:
        return self._guard_for(role)

    def close(self, *, graceful: bool) -> None:
        self._context.shut_down([self.guard], self._context.grace_s if graceful else 0.0)
        self._end_reaper()

    def _end_reaper(self) -> None:
        try:
            self._reaper.wait(2.0 if self.guard.connected else 0.0)
        except subprocess.TimeoutExpired:  # it does not answer, and is ended from above
            end_guard(self._reaper, (2.0, 2.0, 60.0))
