"""Ray: a bundle of a placement group for each worker, and guards in actors there. It never imports ray.

What talks to Ray is a process of its own (`ray_driver`), because Ray takes over the process that it is used in.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec

from rolecall.errors import WorkerConfigurationError
from rolecall.guard.sweep import sweep
from rolecall.placement.cluster import Allocation, AllocationStatus, ClusterScheduler
from rolecall.placement.exit_causes import RUNS, ExitCause
from rolecall.placement.launching import python_path
from rolecall.placement.plan import Plan, portable_environment, separate_slots, with_devices
from rolecall.placement.ray.groups import DEVICE_KEYS, Accelerator, Asking, Placement, held_devices, place
from rolecall.placement.ray.joining import folder_of
from rolecall.placement.sidecar import ANSWER_S, Sidecar
from rolecall.protocol.devices import ASCEND, CUDA
from rolecall.protocol.environment import RAY_NAMESPACE, marks
from rolecall.protocol.guard_config import GuardConfig
from rolecall.protocol.message import to_plain
from rolecall.scheduler.guards import GuardProxy
from rolecall.types import Job, check_count

log = logging.getLogger("rolecall")
JOIN_S = 120.0
SILENCE_S, SHORT_S = 15.0, 1.0  # after the first a start is given up
RELEASE_S = 45.0  # longer than the driver takes to give up
LEAVE_S, HURRY_S = 30.0, 2.0
ENOUGH_CORES = 1 << 16
IGNORED = ("image", "mount", "nodelist", "exclude", "srun_additional_args", "additional_bash_cmds")


@dataclass(frozen=True)
class RayPlan(Plan):
    """A plan with what is asked of Ray."""

    placement: Placement = field(default_factory=lambda: Placement("shared", (), ()))

    def __str__(self) -> str:
        return f"{super().__str__()}\n{self.placement}"


class RayScheduler(ClusterScheduler):
    """Workers on the nodes of a Ray cluster.

    Args:
        address: Of the cluster's head, `host:port`. None for RAY_ADDRESS, else for a cluster that runs on this host,
            else for one of our own, which is ended with the run. This host must be one of its nodes.
        namespace: Ray's namespace of the guards' actors. Their names, and those of placement groups, begin with the
            run's id, so that any number of runs may share it.
        accelerator: What a spec's `gpu` counts: `gpu`, `npu`, or `none` on a cluster without devices.
        n_gpus_per_node: By which `deferred` groups are split; as many as the largest node has when None.
        reserve_memory: Ask Ray for a spec's `mem` as well. Ray counts memory and enforces nothing, and the default of
            32 GiB for each worker keeps roles off smaller machines.
        queue_timeout: Seconds that a role may wait for its placement groups; None waits for ever.
        init: Further keywords of `ray.init`, for a cluster of our own its size: `{"num_gpus": 4}`.
        options: `ip` and those of `Scheduler`.
    """

    backend = "ray"

    def __init__(
        self,
        *,
        address: str | None = None,
        namespace: str = "rolecall",
        accelerator: Accelerator = "gpu",
        n_gpus_per_node: int | None = None,
        reserve_memory: bool = False,
        queue_timeout: float | None = 300.0,
        init: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        if accelerator not in (*DEVICE_KEYS, "none"):
            raise WorkerConfigurationError("unknown accelerator", accelerator, "use one of gpu, npu, none")
        check_count("n_gpus_per_node", n_gpus_per_node)
        self._address, self._namespace, self._init = address, namespace, dict(init or {})
        self._accelerator: Accelerator = accelerator
        self._per_node, self._reserve_memory = n_gpus_per_node, reserve_memory
        self._driver: Sidecar | None = None
        self._joined = False
        super().__init__(queue_timeout=queue_timeout, **options)

    def _device_var(self) -> str:
        return ASCEND if self._accelerator == "npu" else CUDA

    def _join(self) -> str:
        if find_spec("ray") is None:
            raise WorkerConfigurationError("Ray is not installed", None, "pip install 'rolecall[ray]'")
        # The second: Ray's agents give themselves titles, which would take the room of their first variables.
        mark = marks(self.run_id, "ray") | {"SPT_NOENV": "1"}
        log_path = Path(self.run_dir, "logs", "ray-driver.log")
        self._driver = Sidecar("rolecall.placement.ray.driver", log_path, mark, self._io)
        found = self._enter(self._driver)
        self._address = found["address"]
        self.n_gpus_per_node = found["devices"].get(self._kind, 0) if self._per_node is None else self._per_node
        return str(found["ip"])

    def _enter(self, driver: Sidecar) -> dict[str, Any]:
        """Has the driver join a cluster; returns what it found there."""
        hello = {"address": self._address, "namespace": self._namespace, "init": self._init}
        _, answer = driver.ask("join", timeout=JOIN_S, folder=str(folder_of(self.run_id)), **hello)
        found: dict[str, Any] = answer or {"refused": ["", driver.lost or f"no answer within {JOIN_S:g} s"]}
        if "refused" in found:
            where = self._address or os.environ.get("RAY_ADDRESS") or "none named"
            kind, why = found["refused"]
            raise WorkerConfigurationError(f"the Ray cluster ({where}) cannot be joined: {why}", None, _advice(kind))
        self._joined = True
        return found

    def _leave(self) -> None:
        if self._driver is None:
            return
        patience = LEAVE_S if self._joined and _answers(self._driver) else HURRY_S
        if not self._driver.close(patience):
            log.warning("Ray did not let go within %g s; its driver was killed", patience)
            sweep(self.run_id)
        shutil.rmtree(folder_of(self.run_id), ignore_errors=True)  # a driver that was killed has left it

    @property
    def _kind(self) -> str:
        return DEVICE_KEYS.get(self._accelerator, "GPU")

    def _plan(self, job: Job) -> Plan:
        how = Asking(f"rolecall/{self.run_id}", self._accelerator, self.n_gpus_per_node, self._reserve_memory)
        placement = place(job, how)
        slots = tuple(
            replace(slot, gpu=held_devices(spec, placement.strategy, self._accelerator))
            for slot, spec in zip(separate_slots(job, ENOUGH_CORES), job.specs(), strict=True)
        )
        return RayPlan(job.role, slots, guards=tuple(range(len(slots))), placement=placement)

    def _place(self, job: Job) -> Any:
        unused = [name for name in IGNORED if any(getattr(spec, name) for spec in job.specs())]
        if unused:
            log.warning("role %s: %s mean nothing on Ray and are passed over", job.role, ", ".join(unused))
        return super()._place(job)

    def _submit(self, name: str, plan: Plan, config: GuardConfig) -> Allocation:
        assert isinstance(plan, RayPlan)
        assert self._driver is not None
        allocation = RayAllocation(name, self._driver)
        try:
            config = msgspec.structs.replace(config, env=self._environment())
            self._driver.tell("place", name=name, config=to_plain(config), kind=self._kind, **asdict(plan.placement))
        except BaseException:  # Ctrl-C, when the driver may have the order already
            allocation.release()
            raise
        return allocation

    def _environment(self) -> dict[str, str]:
        """The base of workers' environment: the controller's, and by what an engine finds the cluster."""
        inside = {"RAY_ADDRESS": str(self._address), RAY_NAMESPACE: self._namespace}
        return portable_environment(os.environ, python_path()) | inside


class RayAllocation:
    """A role's placement groups and actors, as the driver tells of them."""

    def __init__(self, name: str, driver: Sidecar) -> None:
        self._name, self._driver = name, driver
        self._heard = time.monotonic()

    def poll(self) -> AllocationStatus:
        standing = AllocationStatus(*self._driver.news.get(f"state {self._name}", ("queued", "")))
        if standing.state == "queued" and time.monotonic() > self._heard + ANSWER_S:
            if not _answers(self._driver, SILENCE_S):
                return AllocationStatus("ended", _silence(self._driver))
            self._heard = time.monotonic()
        return standing if self._driver.lost is None else AllocationStatus("ended", _silence(self._driver))

    def settled(self, plan: Plan, guards: Sequence[GuardProxy]) -> Plan | None:
        layout = self._driver.news.get(f"layout {self._name}")
        if layout is None or not all(guards[n].hello for n in layout["guards"]):
            return None
        devices = {slot.worker_id: given for slot, given in zip(plan.slots, layout["devices"], strict=True)}
        return replace(plan, guards=tuple(layout["guards"]), slots=with_devices(plan.slots, devices))

    def fate(self, ordinal: int) -> ExitCause:
        known: str | None = self._driver.news.get(f"fate {self._name} {ordinal}")
        if known is not None:
            return ExitCause(True, known)
        if self._driver.silent:  # who asks for the next guard need not wait as well
            return ExitCause(True, _silence(self._driver))
        answered, words = self._driver.ask("look", name=self._name, ordinal=ordinal)
        if not answered:
            return ExitCause(True, _silence(self._driver))
        return RUNS if words is None else ExitCause(True, words)

    def release(self) -> None:
        self._driver.tell("release", name=self._name)
        done, deadline = f"released {self._name}", time.monotonic() + RELEASE_S
        while not self._driver.wait_for(done, 1.0) and _answers(self._driver) and time.monotonic() < deadline:
            pass  # a guard may need its time to end
        if done in self._driver.news:
            for left in self._driver.news[done]:
                log.warning("Ray did not end %s", left)
        else:
            log.warning("Ray did not confirm the end of %s: %s", self._name, _silence(self._driver))


def _answers(driver: Sidecar, timeout: float | None = None) -> bool:
    """Whether Ray's head can still be asked. Who has waited in vain does not wait so long again."""
    return bool(driver.ask("ping", timeout=timeout or (SHORT_S if driver.silent else ANSWER_S))[1])


def _silence(driver: Sidecar) -> str:
    if driver.lost is None:
        return "Ray does not answer: its head may be gone"
    return f"the connection to Ray is gone: {driver.lost}"


def _advice(kind: str) -> str:
    if kind == "AuthenticationError":
        return "set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH as on the cluster"
    return "is it running, and is this host one of its nodes (`ray start --address=... --num-cpus=0` makes it one)?"
