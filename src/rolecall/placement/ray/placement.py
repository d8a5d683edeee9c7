"""Ray: a bundle of a placement group for each worker, and guards in actors there. It never imports ray.

What talks to Ray is a process of its own (`driver`), because Ray takes over the process that it is used in.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec

from rolecall.errors import WorkerConfigurationError
from rolecall.guard.sweep import sweep
from rolecall.placement.allocations import RUNS, AllocationStatus, ClusterPlacement, ExitCause
from rolecall.placement.base import ExpectedGuard, Placed, PlacementContext
from rolecall.placement.launching import python_path
from rolecall.placement.outside import Finding, info, is_private, ok, warning
from rolecall.placement.plan import Plan, portable_environment, separate_slots, warn_of_unused, with_devices
from rolecall.placement.ray.groups import DEVICE_KEYS, Accelerator, Asking, held_devices, place, table
from rolecall.placement.sidecar import ANSWER_S, Sidecar
from rolecall.protocol import ray_driver as protocol
from rolecall.protocol.devices import ASCEND, CUDA
from rolecall.protocol.environment import RAY_NAMESPACE, marks
from rolecall.protocol.guard import NoArguments
from rolecall.protocol.guard_config import GuardConfig
from rolecall.protocol.ray_driver import JoinCluster, Joined, OfGuard, OfRole, PlaceRole, RoleGroups, RoleNews
from rolecall.transport.address import dial_host
from rolecall.types import Job, check_count

log = logging.getLogger("rolecall")
NAME = "ray"
JOIN_S = 120.0
DIAL_S = 5.0
LEAVE_S, HURRY_S = 30.0, 2.0
ENOUGH_CORES = 1 << 16
SILENCE_S, SHORT_S = 15.0, 1.0  # after the first a start is given up
RELEASE_S = 45.0  # longer than the driver takes to give up
IGNORED = ("image", "mount", "nodelist", "exclude", "srun_additional_args", "additional_bash_cmds")


@dataclass(frozen=True)
class RayPlan(Plan):
    """A plan with what is asked of Ray."""

    role_groups: RoleGroups = field(default_factory=lambda: RoleGroups("shared", (), ()))

    def __str__(self) -> str:
        return f"{super().__str__()}\n{table(self.role_groups)}"


class RayPlacement(ClusterPlacement[RayPlan]):
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
        ip: The controller's address as the cluster's hosts see it; found out when None.
        queue_timeout: Seconds that a role may wait for its placement groups; None waits for ever. Time to start
            (`start_timeout`) is counted from then on.
        init: Further keywords of `ray.init`, for a cluster of our own its size: `{"num_gpus": 4}`.

    Attributes:
        address: Of the head of the cluster that was joined, once it is open.
        driver: The process that talks to Ray.
    """

    name = NAME

    def __init__(
        self,
        *,
        address: str | None = None,
        namespace: str = "rolecall",
        accelerator: Accelerator = "gpu",
        n_gpus_per_node: int | None = None,
        reserve_memory: bool = False,
        ip: str | None = None,
        queue_timeout: float | None = 300.0,
        init: Mapping[str, Any] | None = None,
    ) -> None:
        if accelerator not in (*DEVICE_KEYS, "none"):
            raise WorkerConfigurationError("unknown accelerator", accelerator, "use one of gpu, npu, none")
        check_count("n_gpus_per_node", n_gpus_per_node)
        super().__init__(ip, queue_timeout)
        self.address, self._namespace, self._init = address, namespace, dict(init or {})
        self._accelerator: Accelerator = accelerator
        self._per_node, self._reserve_memory = n_gpus_per_node, reserve_memory
        self._kind = DEVICE_KEYS.get(accelerator, "GPU")
        self._joined = False
        self.device_variable = ASCEND if accelerator == "npu" else CUDA

    def open(self, context: PlacementContext) -> None:
        if find_spec("ray") is None:
            raise WorkerConfigurationError("Ray is not installed", None, "pip install 'rolecall[ray]'")
        self._context = context
        # The second: Ray's agents give themselves titles, which would take the room of their first variables.
        mark = marks(context.run_id, "ray") | {"SPT_NOENV": "1"}
        log_path = context.run_dir / "logs" / "ray-driver.log"
        self.driver = Sidecar("rolecall.placement.ray.driver", log_path, mark, context.io, RoleNews)
        with contextlib.ExitStack() as undo:
            undo.callback(self._leave)
            found = self._join()
            self.address = found.address
            self.n_gpus_per_node = int(found.most.get(self._kind, 0)) if self._per_node is None else self._per_node
            self._most = {} if found.may_grow else found.most
            self._begin(context, found.ip)
            undo.pop_all()

    def _join(self) -> Joined:
        """Has the driver join a cluster; returns what it found there."""
        folder = str(folder_of(self._context.run_id))
        wanted = JoinCluster(address=self.address, folder=folder, namespace=self._namespace, init=self._init)
        found = self.driver.ask(protocol.JOIN, wanted, timeout=JOIN_S)
        if found is None:
            found = Joined(error="TimeoutError", reason=self.driver.lost or f"no answer within {JOIN_S:g} s")
        if found.error:
            where = self.address or os.environ.get("RAY_ADDRESS") or "none named"
            what = f"the Ray cluster ({where}) cannot be joined: {found.reason}"
            raise WorkerConfigurationError(what, None, _advice(found.error))
        self._joined = True
        return found

    def _leave(self) -> None:
        patience = LEAVE_S if self._joined and _answers(self.driver) else HURRY_S
        if not self.driver.close(patience):
            log.warning("Ray did not shut down within %g s; its driver was killed", patience)
            sweep(self._context.run_id)
        remove_cluster(self._context.run_id)  # a driver that was killed has left its folder

    def plan(self, job: Job) -> RayPlan:
        how = Asking(
            f"rolecall/{self._context.run_id}",
            self._accelerator,
            self.n_gpus_per_node,
            self._reserve_memory,
            self._most,
        )
        groups = place(job, how)
        slots = tuple(
            replace(slot, gpu=held_devices(spec, groups.strategy, self._accelerator))
            for slot, spec in zip(separate_slots(job, ENOUGH_CORES), job.specs(), strict=True)
        )
        return RayPlan(job.role, slots, guards=tuple(range(len(slots))), role_groups=groups)

    def place(self, job: Job) -> Placed:
        warn_of_unused(job, IGNORED, "on Ray")
        return super().place(job)

    def close(self, *, graceful: bool) -> None:
        try:
            super().close(graceful=graceful)
        finally:
            self._leave()

    def _submit(self, plan: RayPlan, name: str, config: GuardConfig) -> RayAllocation:
        allocation = RayAllocation(name, self.driver)
        try:
            # The base of workers' environment: the controller's, and by what an engine finds the cluster.
            cluster = {"RAY_ADDRESS": str(self.address), RAY_NAMESPACE: self._namespace}
            env = portable_environment(os.environ, python_path()) | cluster
            config = msgspec.structs.replace(config, env=env)
            wanted = PlaceRole(name=name, config=config, kind=self._kind, wanted=plan.role_groups)
            self.driver.tell(protocol.PLACE, wanted)
        except BaseException:  # Ctrl-C, when the driver may have the order already
            allocation.release()
            raise
        return allocation

    @classmethod
    def clean(cls, run_id: str) -> None:
        remove_cluster(run_id)

    @classmethod
    def findings(cls) -> Iterable[Finding]:
        return check_ray()


def _advice(error: str) -> str:
    if error == "AuthenticationError":
        return "set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH as on the cluster"
    return "is it running, and is this host one of its nodes (`ray start --address=... --num-cpus=0` makes it one)?"


class RayAllocation:
    """A role's placement groups and actors, as the driver tells of them."""

    def __init__(self, name: str, driver: Sidecar[RoleNews]) -> None:
        self._name, self._driver = name, driver
        self._heard = time.monotonic()

    @property
    def _news(self) -> RoleNews:
        return self._driver.latest(self._name) or RoleNews()

    def poll(self) -> AllocationStatus:
        news = self._news
        if news.state == "queued" and time.monotonic() > self._heard + ANSWER_S:
            if not _answers(self._driver, SILENCE_S):
                return AllocationStatus("ended", _silence(self._driver))
            self._heard = time.monotonic()
        if self._driver.lost is not None:
            return AllocationStatus("ended", _silence(self._driver))
        return AllocationStatus(news.state, news.reason)

    def settled(self, plan: Plan, guards: Sequence[ExpectedGuard]) -> Plan | None:
        news = self._news
        if not news.guards or not all(guards[n].connected for n in news.guards):
            return None
        devices = {slot.worker_id: given for slot, given in zip(plan.slots, news.devices, strict=True)}
        return replace(plan, guards=tuple(news.guards), slots=with_devices(plan.slots, devices))

    def exit_cause(self, ordinal: int) -> ExitCause:
        known = self._news.ends.get(f"{self._name}-{ordinal}")
        if known is None and not self._driver.silent:  # who asks for the next guard need not wait as well
            known = self._driver.ask(protocol.LOOK, OfGuard(name=self._name, ordinal=ordinal))
        if known == "":
            return RUNS
        return ExitCause(True, known or _silence(self._driver))

    def release(self) -> None:
        self._driver.tell(protocol.RELEASE, OfRole(name=self._name))
        deadline = time.monotonic() + RELEASE_S
        # A guard may need its time to end.
        while not self._driver.wait_for(self._name, lambda news: news.left is not None, 1.0):
            if time.monotonic() > deadline or not _answers(self._driver):
                break
        left = self._news.left
        if left is None:
            log.warning("Ray did not confirm the end of %s: %s", self._name, _silence(self._driver))
        for name in left or ():
            log.warning("Ray did not end %s", name)


def _answers(driver: Sidecar[RoleNews], timeout: float | None = None) -> bool:
    """Whether Ray's head can still be asked. Who has waited in vain does not wait so long again."""
    nodes = driver.ask(protocol.COUNT_NODES, NoArguments(), timeout=timeout or (SHORT_S if driver.silent else ANSWER_S))
    return bool(nodes)


def _silence(driver: Sidecar[RoleNews]) -> str:
    if driver.lost is None:
        return "Ray does not answer: its head may be gone"
    return f"the connection to Ray is gone: {driver.lost}"


# What the command line asks, without a run of its own.


def folder_of(run_id: str) -> Path:
    """Where a run's own cluster lies. Short: a Unix socket's path holds 107 bytes, Ray needs 79 of them."""
    return Path(f"/tmp/rc-ray-{run_id}")


def remove_cluster(run_id: str) -> None:
    """Removes the files of a cluster of the run's own, whose processes are gone, if there are any."""
    folder = folder_of(run_id)
    if folder.parent == Path("/tmp") and is_private(folder):
        shutil.rmtree(folder, ignore_errors=True)


def check_ray(env: Mapping[str, str] = os.environ) -> Iterator[Finding]:
    """Whether somebody listens where `RAY_ADDRESS` says that the cluster is."""
    address = env.get("RAY_ADDRESS", "")
    if not address:
        yield info(NAME, "RAY_ADDRESS is not set", 'scheduler("ray") starts a Ray of its own where none runs')
        return
    try:
        dial_host(address, DIAL_S)
        yield ok(NAME, f"a Ray cluster's head answers at {address}")
    except ValueError:
        advice = "name the head's own address, host:port (6379 by default); see docs/ray.md"
        yield warning(NAME, f"RAY_ADDRESS={address} is no address of a cluster's head", advice)
    except OSError as e:
        seen = f"nobody answers at {address}, where RAY_ADDRESS points: {e}"
        yield warning(NAME, seen, "start the cluster, or correct RAY_ADDRESS", "ray status")
