"""The half of the controller: AReaL's scheduler interface over a scheduler of rolecall."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import logging
import weakref
from collections.abc import Sequence
from typing import Any, Literal, Self

import areal.api
from areal.api.cli_args import NameResolveConfig
from areal.infra.utils.concurrent import run_async_task
from areal.infra.utils.launcher import BASE_ENVIRONS
from areal.utils import name_resolve, names
from areal.utils.offload import get_tms_env_vars

import rolecall
from rolecall.areal import jobs, programs
from rolecall.areal.errors import translated
from rolecall.areal.tensors import install
from rolecall.errors import EncodeError, RolecallError, ShardNotFoundError, WorkerNotFoundError

HOST, ENGINE = "rolecall.areal.host", "areal"
log = logging.getLogger("rolecall")


class RolecallScheduler(areal.api.Scheduler):
    """Takes the place of AReaL's LocalScheduler, SlurmScheduler and RayScheduler.

    Args:
        backend: `local`, `slurm` or `ray`.
        exp_config: AReaL's configuration of the experiment; what it says comes before the other arguments.
        gpu_devices: The devices to give out, on one machine.
        n_gpus_per_node: Devices of a node, on a cluster.
        startup_timeout: Seconds within which a role must be ready.
        options: Those of `rolecall.scheduler(backend, ...)`, and further ones of AReaL's schedulers, which have no
            use here and are passed over (`PASSED_OVER`).
    """

    PASSED_OVER = ("log_dir", "health_check_interval", "cluster_name")

    def __init__(
        self,
        gpu_devices: Sequence[int] | None = None,
        *,
        backend: Literal["local", "slurm", "ray"] = "local",
        n_gpus_per_node: int | None = None,
        experiment_name: str | None = None,
        trial_name: str | None = None,
        fileroot: str | None = None,
        startup_timeout: float = 300.0,
        enable_tms_offload: bool | None = None,
        name_resolve_type: str = "nfs",
        nfs_record_root: str = "/tmp/areal/name_resolve",
        etcd3_addr: str = "localhost:2379",
        exp_config: Any = None,
        **options: Any,
    ) -> None:
        self.experiment_name, self.trial_name, self.fileroot = experiment_name, trial_name, fileroot
        self.name_resolve_config = NameResolveConfig(name_resolve_type, nfs_record_root, etcd3_addr)
        if exp_config is not None:
            self.experiment_name, self.trial_name = exp_config.experiment_name, exp_config.trial_name
            self.fileroot, enable_tms_offload = exp_config.cluster.fileroot, exp_config.enable_offload
            self.name_resolve_config, n_gpus_per_node = (
                exp_config.cluster.name_resolve,
                exp_config.cluster.n_gpus_per_node,
            )
        if self.experiment_name is None or self.trial_name is None:
            raise ValueError("experiment_name and trial_name must be given")
        name_resolve.reconfigure(self.name_resolve_config)
        name_resolve.clear_subtree(names.trial_root(self.experiment_name, self.trial_name))
        self.exp_config, self._backend = exp_config, backend
        self._env = BASE_ENVIRONS | (get_tms_env_vars() if enable_tms_offload else {})
        self._coroutines: dict[tuple[str, str], list[str]] = {}
        self._programs: set[str] = set()
        install()
        of_backend = {"devices": gpu_devices} if backend == "local" else {"n_gpus_per_node": n_gpus_per_node}
        kept = {name: value for name, value in options.items() if name not in self.PASSED_OVER}
        self._run = rolecall.scheduler(
            backend,
            experiment=self.experiment_name,
            trial=self.trial_name,
            fileroot=self.fileroot,
            start_timeout=startup_timeout,
            **{"preload": ("torch", HOST), **of_backend, **kept},
        )
        self.close = weakref.finalize(self, self._run.close)  # also when nobody does, at the program's end

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def n_gpus_per_node(self) -> int:
        return self._run.n_gpus_per_node

    def create_workers(self, job: areal.api.Job, *args: Any, **kwargs: Any) -> list[str]:
        """Starts a role; its workers are ready when this returns, and `get_workers` does not wait."""
        ours = jobs.job_of(job, self._env, self._arguments(), slurm=self._backend == "slurm")
        with translated():
            made = self._run.create_workers(ours)
            if made[0] == f"{job.role}/0":  # else it lives in the workers of another, which host engines already
                self._host_engines(job.role)
        return made

    def fork_workers(self, role: str, target_role: str, command: str | None = None) -> list[str]:
        program = jobs.program(["{python}", "-m", command], self._arguments()) if command else {}
        with translated():
            made = self._run.fork_workers(role, target_role, program.get("cmd"), ready=program.get("ready"))
            self._host_engines(role)
        return made

    def get_workers(self, role: str, timeout: int | None = None) -> list[areal.api.Worker]:
        with translated():
            return [areal.api.Worker(**dataclasses.asdict(w)) for w in self._run.get_workers(role, timeout)]

    def delete_workers(self, role: str | None = None, reverse_order: bool = False) -> None:
        """Ends a role, or all of them. All engines of a role are destroyed together before any process ends."""
        try:
            with translated():
                self._run.delete_workers(role, reverse_order)
        except Exception as e:
            if not isinstance(e.__cause__, WorkerNotFoundError):
                raise
            log.warning("nothing to delete: %s", e.__cause__)

    async def set_worker_env(self, worker_id: str, env: dict[str, str]) -> None:
        plain = {key: str(value) for key, value in env.items()}
        with translated():
            await self._run.set_worker_env(worker_id, plain)

    async def create_engine(
        self, worker_id: str, engine: str, engine_name: str | None = None, *args: Any, **kwargs: Any
    ) -> None:
        name = engine_name or worker_id
        with translated():
            worker = self._worker(worker_id)
            if self._is_program(worker_id):
                await programs.create(worker.worker, name, engine, [*args], kwargs)
                return
            self._coroutines[worker_id, name] = await worker.acall("create", name, engine, [*args], kwargs)

    def call_engine(
        self,
        worker_id: str,
        method: str,
        engine_name: str | None = None,
        *args: Any,
        rpc_meta: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        return run_async_task(
            self.async_call_engine, worker_id, method, engine_name, *args, rpc_meta=rpc_meta, **kwargs
        )

    async def async_call_engine(
        self,
        worker_id: str,
        method: str,
        engine_name: str | None = None,
        *args: Any,
        rpc_meta: dict[str, Any] | None = None,
        http_timeout: float | None = None,
        max_retries: int = 1,
        retry_delay: float = 0.0,
        **kwargs: Any,
    ) -> Any:
        """Calls a method once, whatever `max_retries` says: what failed may have run."""
        name = engine_name or worker_id
        with translated(method):
            worker = self._worker(worker_id).with_options(timeout=http_timeout)
            if self._is_program(worker_id):
                return await programs.call(worker.worker, name, method, [*args], kwargs, http_timeout)
            how = "acall" if method in self._coroutines.get((worker_id, name), ()) else "call"
            give_up = functools.partial(_give_up, worker, name, rpc_meta)
            try:
                pending = worker.submit(how, name, method, [*args], kwargs, rpc_meta)
            except EncodeError as e:
                give_up(e)
                raise
            try:
                return await _answer(pending)
            except ShardNotFoundError as e:
                give_up(e)
                raise
            except asyncio.CancelledError:
                pending.add_done_callback(lambda call: give_up(call.exception()))
                raise

    def _host_engines(self, role: str) -> None:
        """Gives workers that run no program of their own what hosts AReaL's engines."""
        workers = rolecall.Role(self._run, role)
        programs_of = {state.id for state in workers.inspect() if state.command is not None}
        self._programs |= programs_of
        fresh = [w for w in workers if w.id not in programs_of]
        calls = [
            w.with_options(engine=ENGINE).submit_engine(f"{HOST}.EngineHost", (w.id, self.name_resolve_config), {})
            for w in fresh
        ]
        for call in calls:
            call.result()

    def _is_program(self, worker_id: str) -> bool:
        return worker_id in self._programs

    def _worker(self, worker_id: str) -> Any:
        role, _, index = worker_id.rpartition("/")
        return rolecall.Role(self._run, role)[int(index)].with_options(engine=ENGINE)

    def _arguments(self) -> list[str]:
        """What AReaL's programs are started with, beside their host, port and identity."""
        told = {
            "experiment-name": self.experiment_name,
            "trial-name": self.trial_name,
            "name-resolve-type": self.name_resolve_config.type,
            "nfs-record-root": self.name_resolve_config.nfs_record_root,
            "etcd3-addr": self.name_resolve_config.etcd3_addr,
            "fileroot": self.fileroot,
        }
        return [word for name, value in told.items() if value for word in (f"--{name}", str(value))]


async def _answer(pending: rolecall.PendingCall) -> Any:
    """The result. Who stops waiting for it does not stop the call, since others may wait for it in a collective."""
    done, loop = asyncio.Event(), asyncio.get_running_loop()

    def wake(call: Any) -> None:
        with contextlib.suppress(RuntimeError):  # that loop has ended
            loop.call_soon_threadsafe(done.set)

    pending.add_done_callback(wake)
    await done.wait()
    return pending.result()


def _give_up(worker: Any, name: str, rpc_meta: dict[str, Any] | None, reason: BaseException | None) -> None:
    """A head that never gets its arguments says so in their broadcast, or its group would wait for ever."""
    if isinstance(reason, EncodeError | ShardNotFoundError):
        with contextlib.suppress(RolecallError):
            worker.submit("give_up", name, rpc_meta, str(reason))
