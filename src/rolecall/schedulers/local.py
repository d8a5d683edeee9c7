"""One machine: one guard, started as a child of the controller, ready before the first role asks for it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rolecall.calls import main_path
from rolecall.errors import GuardLostError, WorkerTimeoutError
from rolecall.guard.sweep import sweep
from rolecall.schedulers.base import Scheduler
from rolecall.schedulers.devices import VISIBLE_VARIABLES, DevicePool, parse_visible
from rolecall.schedulers.guards import GuardProxy
from rolecall.schedulers.plan import Plan, base_environment, separate_slots
from rolecall.types import Job, worker_id

GUARD_TIMEOUT_S = 60.0


class LocalScheduler(Scheduler):
    """Workers on this machine.

    Args:
        devices: Names of the devices to give out; by default what the visible-devices variable lists, else what is counted.
        oversubscribe: Share devices in turn when more are asked for than are free.
        ip: Address under which workers are reached; loopback, since the run is on one machine.
        options: Those of `Scheduler`.
    """

    def __init__(
        self,
        *,
        devices: Sequence[str | int] | None = None,
        oversubscribe: bool = False,
        ip: str = "127.0.0.1",
        **options: Any,
    ) -> None:
        found = [str(d) for d in devices] if devices is not None else visible_devices()
        self._pool = DevicePool(found, oversubscribe=oversubscribe)
        self.n_gpus_per_node = len(found)
        self._ip = ip
        super().__init__(**options)
        try:
            self._guard = self._hub.expect("g0")
            self._reaper = self._launch()
        except BaseException:
            self._hub.close()
            self._io.close()
            self._run.close()
            raise

    def plan(self, job: Job) -> Plan:
        wants = {worker_id(job.role, i): spec.gpu for i, spec in enumerate(job.specs())}
        return Plan(job.role, separate_slots(job, self._pool.preview(wants), os.cpu_count() or 1))

    def _place(self, plan: Plan) -> list[GuardProxy]:
        self._wait_for_guard()
        self._pool.take({slot.worker_id: len(slot.devices) for slot in plan.slots})
        return [self._guard] * len(plan.slots)

    def _withdraw(self, members: Sequence[str], *, all_of_role: str) -> None:
        for member in members:
            self._pool.give_back(member)

    def _wait_for_guard(self) -> None:
        if self._guard.wait(GUARD_TIMEOUT_S):
            return
        if self._guard.lost is not None:
            raise self._guard.lost
        if self._reaper.poll() is not None:
            tail = self._guard_log().read_text(errors="replace")[-2000:]
            reason = f"it ended with status {self._reaper.returncode} before it called home\n{tail}"
            raise GuardLostError(self._guard.guard_id, reason=reason)
        raise WorkerTimeoutError("guard g0", GUARD_TIMEOUT_S, "call home", f"see {self._guard_log()}")

    def _end_guards(self, *, graceful: bool) -> None:
        guard = self._guard
        guard.ending = True
        if guard.info and guard.lost is None:
            try:
                guard.ask("shutdown", {"grace_s": self._grace_s if graceful else 0.0}, timeout=15.0).result()
            except (GuardLostError, TimeoutError):
                pass  # it is gone or does not answer; the reaper and the sweep below see to the rest
        else:
            self._reaper.terminate()
        self._await_reaper()
        sweep(self._run.run_id)

    def _await_reaper(self) -> None:
        try:
            self._reaper.wait(5.0)
        except subprocess.TimeoutExpired:
            self._reaper.kill()
            self._reaper.wait()

    def _guard_log(self) -> Path:
        return self._run.run_dir / "logs" / f"guard-{self._guard.guard_id}.log"

    def _launch(self) -> subprocess.Popen[bytes]:
        """Starts the guard's process. Its configuration, the token in it, goes through a descriptor."""
        fd = os.memfd_create("rolecall-config", os.MFD_CLOEXEC)
        try:
            os.write(fd, json.dumps(self._guard_config()).encode())
            os.lseek(fd, 0, os.SEEK_SET)
            with self._guard_log().open("ab") as out:
                return subprocess.Popen(
                    [sys.executable, "-m", "rolecall.guard", "--config-fd", str(fd)],
                    pass_fds=[fd],
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=out,
                    start_new_session=True,
                    env=base_environment(os.environ, _python_path()),
                )
        finally:
            os.close(fd)

    def _guard_config(self) -> dict[str, Any]:
        return {
            "run_id": self._run.run_id,
            "guard_id": self._guard.guard_id,
            "token": self._run.token,
            "controller": self._hub.addresses,
            "epoch": 0,
            "lease_s": self._lease_s,
            "ip": self._ip,
            "bind": self._ip,
            "run_dir": str(self._run.run_dir),
            "runtime_dir": str(self._run.runtime_dir),
            "preload": self._preload,
            "env": base_environment(os.environ, _python_path()),
            "cwd": str(Path.cwd()),
            "sys_path": _python_path(),
            "main_path": main_path(),
            "controller_pid": os.getpid(),
            "controller_start": _start_time(os.getpid()),
        }


def visible_devices() -> list[str]:
    """What the visible-devices variable lists, else the device files that are there."""
    for variable in VISIBLE_VARIABLES:
        if variable in os.environ:
            return parse_visible(os.environ[variable])
    for pattern in ("nvidia[0-9]*", "davinci[0-9]*"):
        found = sorted((p.name for p in Path("/dev").glob(pattern)), key=lambda n: int("".join(filter(str.isdigit, n))))
        if found:
            return [str(i) for i in range(len(found))]
    return []


def _python_path() -> list[str]:
    """Where the controller finds modules; `""` (the current folder) by name, since workers must find the same."""
    return list(dict.fromkeys(p or str(Path.cwd()) for p in sys.path))


def _start_time(pid: int) -> int:
    """Start of a process in clock ticks since boot, which tells it from a later one of the same pid."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
