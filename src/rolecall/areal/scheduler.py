"""The half of the controller: AReaL's scheduler interface over a scheduler of rolecall."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
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

HOST = "rolecall.areal.host"
RESOLVING = {"name_resolve_type": "type", "nfs_record_root": "nfs_record_root", "etcd3_addr": "etcd3_addr"}
IDENTITY = ("experiment_name", "trial_name", "fileroot")
DEFAULTS: dict[str, Any] = {"startup_timeout": 300.0, "preload": ("torch", HOST)}
# Arguments of AReaL's schedulers: what they are called here, and those that have no use here.
OURS = {"experiment_name": "experiment", "trial_name": "trial", "startup_timeout": "start_timeout"}
PASSED_OVER = ("log_dir", "health_check_interval", "cluster_name", "container_mounts")
OF_CALLS = ("rpc_meta", "http_timeout", "max_retries", "retry_delay")  # and no arguments of the engine's method
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
        said = options | (_of_experiment(exp_config) if exp_config is not None else {})
        self.experiment_name, self.trial_name, self.fileroot = map(said.get, IDENTITY)
        if self.experiment_name is None or self.trial_name is None:
            raise ValueError("experiment_name and trial_name must be given")
        resolving = NameResolveConfig(**{RESOLVING[name]: said.pop(name) for name in RESOLVING.keys() & said.keys()})
        self.name_resolve_config: Any = said.pop("name_resolve", resolving)
        name_resolve.reconfigure(self.name_resolve_config)
        name_resolve.clear_subtree(names.trial_root(self.experiment_name, self.trial_name))
        self.exp_config, self._backend, self._programs = exp_config, backend, set[str]()
        self._env = BASE_ENVIRONS | (get_tms_env_vars() if said.pop("enable_tms_offload", False) else {})
        self._env[jobs.NAME_RESOLVING] = json.dumps(dataclasses.asdict(self.name_resolve_config))
        install()
        said = DEFAULTS | said | {"worker_setup": f"{HOST}.set_up", "one_engine_thread": True}
        if backend == "local":
            said |= {"devices": gpu_devices, "n_gpus_per_node": None}
        kept = {OURS.get(k, k): v for k, v in said.items() if k not in PASSED_OVER and v is not None}
        self._run = rolecall.scheduler(backend, **kept)
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
            self._note_programs(job.role)
        return made

    def fork_workers(self, role: str, target_role: str, command: str | None = None) -> list[str]:
        program = jobs.program(["{python}", "-m", command], self._arguments()) if command else {}
        with translated():
            made = self._run.fork_workers(role, target_role, program.get("cmd"), ready=program.get("ready"))
            self._note_programs(role)
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
        with translated():
            await self._run.set_worker_env(worker_id, {key: str(value) for key, value in env.items()})

    async def create_engine(
        self, worker_id: str, engine: str, engine_name: str | None = None, *args: Any, **kwargs: Any
    ) -> None:
        with translated():
            worker = self._worker(worker_id, engine=engine_name or worker_id)
            if worker_id in self._programs:
                await worker.submit_engine(engine, serialize_value([*args]), serialize_value(kwargs))
            else:
                await worker.submit_engine(f"{HOST}.Engine", [engine, *args], kwargs)

    def call_engine(self, *args: Any, **kwargs: Any) -> Any:
        return run_async_task(self.async_call_engine, *args, **kwargs)

    async def async_call_engine(
        self, worker_id: str, method: str, engine_name: str | None = None, *args: Any, **kwargs: Any
    ) -> Any:
        """Calls a method once: `max_retries` and `retry_delay` are passed over, since what failed may have run."""
        rpc_meta, timeout, *_ = (kwargs.pop(option, None) for option in OF_CALLS)
        with translated():
            worker = self._worker(worker_id, engine=engine_name or worker_id, timeout=timeout)
            if worker_id in self._programs:
                sent = worker.acall(method, *serialize_value([*args]), **serialize_value(kwargs))
                return deserialize_value(await sent)
            try:
                pending = worker.submit(method, *args, rpc_meta=rpc_meta, **kwargs)
            except EncodeError as e:  # a head that never gets its arguments says so, or its group would wait for ever
                with contextlib.suppress(RolecallError):
                    worker.submit("arguments_lost", method, [], {"rpc_meta": rpc_meta}, str(e))
                raise
            # Who stops waiting does not stop the call, since others may wait for it in a collective.
            return await asyncio.shield(asyncio.wrap_future(pending))

    def _note_programs(self, role: str) -> None:
        """Notes which workers run a program of their own, which is asked as AReaL asks it."""
        self._programs |= {state.id for state in rolecall.Role(self._run, role).inspect() if state.command is not None}

    def _worker(self, worker_id: str, **options: Any) -> Any:
        role, _, index = worker_id.rpartition("/")
        return rolecall.Role(self._run, role)[int(index)].with_options(**options)

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
