"""A backend as a user may write one: each role gets a guard of its own, which is a plain subprocess."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence

from rolecall.placement.base import ExpectedGuard, PlacementContext
from rolecall.placement.host_placement import HostPlacement
from rolecall.placement.launching import connected
from rolecall.protocol.environment import marks
from rolecall.protocol.message import to_json

GUARD = [sys.executable, "-m", "rolecall.guard", "--config-fd", "0"]


class ToyPlacement(HostPlacement):
    """Guards below this process. `devices`: how many this machine pretends to have; `command`: a guard."""

    name = "toy"

    def __init__(self, *, devices: int = 0, command: Sequence[str] = GUARD) -> None:
        super().__init__(devices=range(devices))
        self._command = command
        self._guards: dict[str, tuple[ExpectedGuard, subprocess.Popen[bytes]]] = {}

    def open(self, context: PlacementContext) -> None:
        self._context = context

    def _guard_for(self, role: str) -> str:
        guard = self._context.expect(f"toy-{role}")
        env = os.environ | marks(self._context.run_id, guard.guard_id)
        process = subprocess.Popen(self._command, stdin=subprocess.PIPE, start_new_session=True, env=env)
        self._guards[role] = guard, process
        assert process.stdin is not None
        with process.stdin as stdin:  # the configuration holds the run's token
            stdin.write(to_json(self._context.guard_config(guard.guard_id)).encode())
        return connected(guard, process, self._context.start_timeout)

    def release(self, role: str) -> None:
        super().release(role)
        if role in self._guards:
            guard, process = self._guards.pop(role)
            self._context.shut_down([guard], self._context.grace_s)
            process.terminate()
            process.wait()
            self._context.forget(guard)

    def close(self, *, graceful: bool) -> None:
        for role in list(self._guards):
            self.release(role)
