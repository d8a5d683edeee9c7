"""What a scheduler gives to its placement: the run, and guards to expect."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from rolecall.errors import WorkerConfigurationError
from rolecall.guard.proc import identify
from rolecall.placement.base import ExpectedGuard, Explain
from rolecall.placement.launching import current_folder, python_path
from rolecall.protocol.guard import SHUTDOWN, Shutdown
from rolecall.protocol.guard_config import GuardConfig
from rolecall.scheduler.calls import controller_main
from rolecall.scheduler.guards import GuardProxy, ask_all
from rolecall.scheduler.run import Run
from rolecall.scheduler.supervision import Supervision
from rolecall.transport.hosts import this_host
from rolecall.transport.loop import IOThread

SHUTDOWN_MARGIN_S = 5.0


@dataclass(frozen=True)
class GuardOptions:
    """Options of a scheduler that its guards are told.

    Attributes:
        preload: Modules that their template processes import.
        lease_s: Seconds that a guard lives on without a sign of life of the controller.
        tensor_backend: Where their workers leave tensors.
    """

    preload: Sequence[str]
    lease_s: float
    tensor_backend: str


class RunContext:
    """The `PlacementContext` of a run."""

    def __init__(
        self,
        run: Run,
        io: IOThread,
        watch: Supervision,
        options: GuardOptions,
        *,
        start_timeout: float,
        grace_s: float,
    ) -> None:
        self._run, self._watch, self._options = run, watch, options
        self.run_id, self.experiment, self.run_dir = run.run_id, run.experiment, run.run_dir
        self.io, self.start_timeout, self.grace_s = io, start_timeout, grace_s

    @property
    def addresses(self) -> list[str]:
        return self._watch.guards.addresses

    @property
    def closing(self) -> bool:
        return self._watch.closing

    def guard_config(self, guard_id: str, *, ip: str = "") -> GuardConfig:
        me = identify(os.getpid())
        assert me is not None
        return GuardConfig(
            run_id=self.run_id,
            guard_id=guard_id,
            token=self._run.token,
            controller=self.addresses,
            lease_s=self._options.lease_s,
            ip=ip,
            run_dir=str(self.run_dir),
            runtime_dir=str(self._run.runtime_dir),
            preload=list(self._options.preload),
            cwd=current_folder(),
            sys_path=python_path(),
            main=controller_main(),
            controller_host=this_host(),
            controller_pid=me.pid,
            controller_start=me.start,
            tensor_backend=self._options.tensor_backend,
        )

    def expect(self, guard_id: str, explain: Explain | None = None) -> GuardProxy:
        return self._watch.guards.expect(guard_id, explain)

    def forget(self, guard: ExpectedGuard) -> None:
        self._watch.guards.forget(guard.guard_id)

    def shut_down(self, guards: Sequence[ExpectedGuard], grace_s: float) -> None:
        known = [proxy for guard in guards if (proxy := self._watch.guards.find(guard.guard_id))]
        for proxy in known:
            proxy.ending = True
        there = [proxy for proxy in known if proxy.hello and proxy.lost is None]
        ask_all(SHUTDOWN, [(proxy, Shutdown(grace_s=grace_s)) for proxy in there], grace_s + SHUTDOWN_MARGIN_S)

    def listen(self, ip: str) -> None:
        try:
            self._watch.guards.listen(ip)
        except OSError as e:
            what = f"the controller cannot listen on {ip}: {e.strerror or e}"
            expected = "pass an address of this host that the cluster reaches: ip=..."
            raise WorkerConfigurationError(what, None, expected) from e
