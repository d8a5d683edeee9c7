"""The half of the controller: AReaL's scheduler interface over a scheduler of rolecall."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import weakref
from collections.abc import Sequence
from typing import Any, Self

import areal.api
from areal.api.cli_args import NameResolveConfig
from areal.infra.rpc.serialization import deserialize_value, serialize_value
from areal.infra.utils.concurrent import run_async_task
from areal.infra.utils.launcher import BASE_ENVIRONS
from areal.utils import name_resolve, names
from areal.utils.offload import get_tms_env_vars

import rolecall
from rolecall.areal import jobs
from rolecall.areal.errors import translated
from rolecall.areal.tensors import install
from rolecall.errors import EncodeError, RolecallError, WorkerNotFoundError

HOST, ENGINE = "rolecall.areal.host", "areal"
RESOLVING = ("name_resolve_type", "nfs_record_root", "etcd3_addr")
IDENTITY = ("experiment_name", "trial_name", "fileroot")
# Arguments of AReaL's schedulers: what they are where nobody says, and those that have no use here.
DEFAULTS = dict[str, Any].fromkeys((*IDENTITY, "n_gpus_per_node", "enable_tms_offload")) | {
    **dict(zip(RESOLVING, ("nfs", "/tmp/areal/name_resolve", "localhost:2379"), strict=True)),
    **{"startup_timeout": 300.0, "preload": ("torch", HOST)},
}
PASSED_OVER = ("log_dir", "health_check_interval", "cluster_name", "container_mounts")
log = logging.getLogger("rolecall")


class RolecallScheduler(areal.api.Scheduler):
    """Takes the place of AReaL's LocalScheduler, SlurmScheduler and RayScheduler.

    Args:
        gpu_devices: The devices to give out, on one machine.
        backend: `local`, `slurm` or `ray`.
        exp_config: AReaL's configuration of the experiment; what it says comes before the other arguments.
        options: What AReaL's schedulers take (`experiment_name`, `trial_name`, `fileroot`, `startup_timeout`,
            `n_gpus_per_node`, `enable_tms_offload`, `name_resolve_type`, `nfs_record_root`, `etcd3_addr`), and the
            options of `rolecall.scheduler(backend, ...)`. Those in `PASSED_OVER` are accepted and have no effect.
    """

    def __init__(
        self, gpu_devices: Sequence[int] | None = None, backend: str = "local", exp_config: Any = None, **options: Any
    ) -> None:
        said = DEFAULTS | options | (_of_experiment(exp_config) if exp_config is not None else {})
        self.experiment_name, self.trial_name, self.fileroot = (said.pop(name) for name in IDENTITY)
        if self.experiment_name is None or self.trial_name is None:
            raise ValueError("experiment_name and trial_name must be given")
        resolving = NameResolveConfig(*(said.pop(name) for name in RESOLVING))
        self.name_resolve_config: Any = said.pop("name_resolve", resolving)
        name_resolve.reconfigure(self.name_resolve_config)
        name_resolve.clear_subtree(names.trial_root(self.experiment_name, self.trial_name))
        self.exp_config, self._backend = exp_config, backend
        self._env = BASE_ENVIRONS | (get_tms_env_vars() if said.pop("enable_tms_offload") else {})
        self._coroutines, self._programs = dict[tuple[str, str], list[str]](), set[str]()
        install()
        if backend == "local":
            said |= {"devices": gpu_devices, "n_gpus_per_node": None}
        kept: dict[str, Any] = {
            k: v for k, v in said.items() if k not in PASSED_OVER and (v is not None or k == "devices")
        }
        kept |= {"experiment": self.experiment_name, "trial": self.trial_name, "fileroot": self.fileroot}
        self._run = rolecall.scheduler(backend, start_timeout=kept.pop("startup_timeout"), **kept)
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
        with translated():
            try:
                self._run.delete_workers(role, reverse_order)
            except WorkerNotFoundError as e:
                log.warning("nothing to delete: %s", e)

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
            if worker_id in self._programs:
                asked = worker.with_options(engine=name)
                await asked.submit_engine(engine, serialize_value([*args]), serialize_value(kwargs))
                return
            self._coroutines[worker_id, name] = await worker.acall("create", name, engine, [*args], kwargs)

    def call_engine(
        self, worker_id: str, method: str, engine_name: str | None = None, *args: Any, **kwargs: Any
    ) -> Any:
        return run_async_task(self.async_call_engine, worker_id, method, engine_name, *args, **kwargs)

    async def async_call_engine(
        self,
        worker_id: str,
        method: str,
        engine_name: str | None = None,
        *args: Any,
        rpc_meta: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Calls a method once: `max_retries` and `retry_delay` are passed over, since what failed may have run."""
        http_timeout, *_ = (kwargs.pop(option, None) for option in ("http_timeout", "max_retries", "retry_delay"))
        name = engine_name or worker_id
        with translated(method):
            worker = self._worker(worker_id).with_options(timeout=http_timeout)
            if worker_id in self._programs:
                asked = worker.with_options(engine=name)
                return deserialize_value(
                    await asked.acall(method, *serialize_value([*args]), **serialize_value(kwargs))
                )
            how = "acall" if method in self._coroutines.get((worker_id, name), ()) else "call"
            try:
                pending = worker.submit(how, name, method, [*args], kwargs, rpc_meta)
            except EncodeError as e:  # a head that never gets its arguments says so, or its group would wait for ever
                with contextlib.suppress(RolecallError):
                    worker.submit("give_up", name, rpc_meta, str(e))
                raise
            return await _answer(pending)

    def _host_engines(self, role: str) -> None:
        """Gives workers that run no program of their own what hosts AReaL's engines."""
        workers = rolecall.Role(self._run, role).with_options(engine=ENGINE)
        self._programs |= {state.id for state in workers.inspect() if state.command is not None}
        hosts = [w for w in workers if w.id not in self._programs]
        for call in [w.submit_engine(f"{HOST}.EngineHost", (w.id, self.name_resolve_config), {}) for w in hosts]:
            call.result()

    def _worker(self, worker_id: str) -> Any:
        role, _, index = worker_id.rpartition("/")
        return rolecall.Role(self._run, role)[int(index)].with_options(engine=ENGINE)

    def _arguments(self) -> list[str]:
        """What AReaL's programs are started with, beside their host, port and identity."""
        told = [(name, getattr(self, name)) for name in IDENTITY]
        told += zip(RESOLVING, dataclasses.astuple(self.name_resolve_config)[:3], strict=True)
        return [word for name, value in told if value for word in (f"--{name.replace('_', '-')}", str(value))]


def _of_experiment(config: Any) -> dict[str, Any]:
    """What AReaL's configuration of an experiment says, which comes before the arguments."""
    said = {name: getattr(config.cluster, name) for name in ("fileroot", "name_resolve", "n_gpus_per_node")}
    said |= {name: getattr(config, name) for name in ("experiment_name", "trial_name")}
    return said | {"enable_tms_offload": config.enable_offload}


async def _answer(pending: rolecall.PendingCall) -> Any:
    """The result. Who stops waiting for it does not stop the call, since others may wait for it in a collective."""
    done, loop = asyncio.Event(), asyncio.get_running_loop()

    def wake(call: Any) -> None:
        with contextlib.suppress(RuntimeError):  # that loop has ended
            loop.call_soon_threadsafe(done.set)

    pending.add_done_callback(wake)
    await done.wait()
    return pending.result()
