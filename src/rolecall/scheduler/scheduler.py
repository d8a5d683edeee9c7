"""The scheduler: one code for all backends. It plans, starts, calls and ends workers through guards.

Guards are brought up by the `Placement` that it is given. What this class only hands on is in the files beside it: how
roles begin and end (`lifecycle`), calls (`worker_calls`), deaths (`supervision`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import Any, Self, Unpack

from rolecall.errors import WorkerConfigurationError, shortages_told
from rolecall.guard.sweep import clean_abandoned, sweep
from rolecall.placement.base import Placement
from rolecall.placement.plan import Plan
from rolecall.protocol.environment import WORKER
from rolecall.protocol.state import RunState
from rolecall.scheduler.calls import CallOptions
from rolecall.scheduler.echo import LogEcho
from rolecall.scheduler.keywords import RunOptions, SchedulerKeywords, StartKeywords
from rolecall.scheduler.lifecycle import Ending, RoleLifecycle
from rolecall.scheduler.listener import GuardListener
from rolecall.scheduler.roles import Role, job_of
from rolecall.scheduler.run import Run
from rolecall.scheduler.supervision import Listener, Supervision
from rolecall.scheduler.table import Table
from rolecall.scheduler.worker_calls import WorkerCalls
from rolecall.tensors.lifetime import Home
from rolecall.transport.loop import IOThread
from rolecall.types import Job, SchedulingSpec, SchedulingStrategy, Worker

log = logging.getLogger("rolecall")


class Scheduler:
    """Places and supervises workers. A context manager: leaving the block ends everything it started.

    Args:
        placement: Where guards go.
        experiment: First part of the run directory's name.
        trial: Second part; the time of the start when None.
        fileroot: Where run directories are made; `~/.rolecall` when None.
        tensors: What calls do with tensors and arrays in results when the call does not say: `local` or `remote`.
        tensor_backend: Where workers leave tensors: `shm`, which others on the host map, `wire`, which others ask for,
            or `ray`, the object store of the cluster that RAY_ADDRESS names in the workers' environment.
        preload: Modules that the guards' template processes import before workers are forked from them.
        start_timeout: Seconds within which a role must be ready.
        grace_s: Seconds between SIGTERM and SIGKILL when workers are ended.
        destroy_s: Seconds that `destroy()` of engines may take before that; with 0 it is not called.
        lease_s: Seconds that a guard lives on without a sign of life of the controller.
        stall_s: Seconds without a heartbeat, CPU time and ended calls after which a worker is suspected to hang.
        silence_s: Seconds without an answer of `/health` after which a program is suspected to hang.
        seed: Of the run. Workers seed `random`, numpy and torch by it, their role and index, before they make engines.
        worker_setup: A function without arguments, or its path `package.module.function`, that each worker calls before
            it makes its first engine, in whose thread. What it raises is raised by `create_engine`. A role whose
            workers find no such function is not started.
        one_engine_thread: Plain methods of all engines of a worker run on one thread, one after the other. Otherwise
            each engine has a thread of its own.
        echo_logs: Print on stderr what workers print, each line with its worker's id; on a cluster, where the run
            directory is shared.
        quiet: Do not print the line that says where the run listens and keeps its files.

    Attributes:
        placement: Where guards go.
        calls: How calls get to workers; for those who build on a scheduler.
    """

    def __init__(self, placement: Placement, **keywords: Unpack[SchedulerKeywords]) -> None:
        if WORKER in os.environ and "__rolecall_main__" in sys.modules:
            what = "a scheduler was made while a worker loads this script"
            raise WorkerConfigurationError(what, None, "put the script's work under `if __name__ == '__main__':`")
        options = RunOptions(**keywords)
        if placement.taken:
            what = f"this {type(placement).__name__} is another scheduler's"
            raise WorkerConfigurationError(what, None, "make one for each scheduler")
        placement.taken = True
        self.placement, self._ending = placement, Ending(options.grace_s, options.destroy_s)
        self._run = Run(options.experiment, options.trial, options.fileroot, placement.name)
        self._table = Table()
        with contextlib.ExitStack() as undo, shortages_told("the run was not started"):  # Ctrl-C may come at any line
            undo.callback(self._run.close)
            self._run.open()
            if options.echo_logs and sys.stderr is not None:
                undo.callback(LogEcho(self._run.run_dir / "logs" / "merged.log", sys.stderr).close)
            if placement.starts_processes:
                self._clean_abandoned()
            undo.push(self._sweep_after_error)
            self._io = IOThread("rolecall-io")
            undo.callback(self._io.close)
            self.calls = WorkerCalls(self._run, self._io, self._table, options.tensors)
            undo.callback(self.home.close)
            guards = GuardListener(self._run, self._io, options)
            undo.callback(guards.close)
            self._watch = Supervision(self._run, self._table, guards)
            guards.open(self._watch.on_event, self._watch.write_state)
            self._watch.write_state()  # before anything is started, so that `rolecall stop` knows the run's id
            placement.open(guards)
            with contextlib.ExitStack() as ends:
                ends.callback(placement.close, graceful=False)
                self._life = RoleLifecycle(self._table, self.calls, self._watch, placement)
                if not options.quiet:
                    self._announce(guards.addresses)
                ends.pop_all()
            self._undo = undo.pop_all()

    def _clean_abandoned(self) -> None:
        """Does for runs of this user on this host what nobody was left to do when they ended."""
        for run_id, killed in clean_abandoned(self._run.runtime_dir.parent).items():
            self.placement.clean(run_id)
            left = ", ".join(f"{item.pid} {item.name}" for item in killed) or "files"
            log.warning("run %s was killed with its guards; ended what was left of it: %s", run_id, left)

    def _announce(self, addresses: Sequence[str]) -> None:
        run = f"run {self._run.experiment}/{self._run.trial} listens on {' and '.join(addresses)}"
        with contextlib.suppress(OSError, ValueError):  # nobody reads stderr any more, or it was closed
            if sys.stderr is not None:
                print(f"rolecall: {run}; auth on, TLS off; files in {self.run_dir}", file=sys.stderr, flush=True)

    # The reference system's interface.

    @property
    def n_gpus_per_node(self) -> int:
        """Devices of a host; of the largest where they differ."""
        return self.placement.n_gpus_per_node

    def plan(self, job: Job) -> Plan:
        """What `create_workers(job)` would start, without starting it.

        Raises:
            GPUAllocationError: More devices than are free.
            WorkerNotFoundError: The target of a colocation does not exist.
        """
        return self._life.plan(job)

    def create_workers(self, job: Job) -> list[str]:
        """Starts a role; returns its worker ids, in order, when every one is ready.

        Raises:
            WorkerCreationError: The role exists, or a worker failed (then none of the role is left).
            WorkerNotFoundError: The target of a colocation does not exist.
            GPUAllocationError: More devices than are free.
            PortAllocationError: More ports than are free.
        """
        self._run.check_startable()
        return self._life.create(job)

    def get_workers(self, role: str, timeout: float | None = None) -> list[Worker]:
        """The workers of a role, in order.

        Raises:
            WorkerNotFoundError: No such role.
            WorkerFailedError: One of them died.
            WorkerTimeoutError: The role is being started and was not ready in time.
        """
        record = self._table.wait_for(role, timeout)
        return [self._table.living(member.id).worker for member in record.members]

    def fork_workers(
        self,
        role: str,
        target_role: str,
        command: str | Sequence[str] | None = None,
        *,
        ready: str | dict[str, Any] | None = None,
        env: dict[str, str] | None = None,
        process_group: bool = False,
    ) -> list[str]:
        """Starts `role/i` in the slot of `target_role/i`, all at the same time; returns their ids when all are ready.

        Args:
            command: None hosts engines; a dotted module runs as `python -m module --host H --port P --role R
                --worker-index I --experiment-name E --trial-name T`; a list is a program with placeholders, see
                `SchedulingSpec.cmd`. Programs find the same in their environment: ROLECALL_HOST, _PORTS, _ROLE, _INDEX,
                and of the target ROLECALL_TARGET_HOST and _PORTS.
            ready: When a program is ready, see `SchedulingSpec.ready`.
            env: Variables of the new workers, over their target's.
            process_group: See `Job.process_group`. A fork is in no process group of its target.

        Raises:
            WorkerNotFoundError: No such target; names the roles there are.
            WorkerCreationError: The role exists, or a worker failed; the others are dead and their ports free.
        """
        self._run.check_startable()
        replicas = len(self._table.role(target_role).members)
        spec = SchedulingSpec(cmd=command, ready=ready, env_vars=dict(env or {}))
        where = SchedulingStrategy("colocation", target_role)
        return self._life.create(Job(role, replicas, [spec], where, process_group))

    def delete_workers(self, role: str | None = None, reverse_order: bool = False) -> None:
        """Ends a role, or all of them in the order they were made. Forks go before their target.

        Args:
            reverse_order: The role made last first, and in each role one worker after the other, the last first. Worker
                0, which serves the store of a process group, ends last. `grace_s` is for all of a role together.

        Raises:
            WorkerNotFoundError: No such role.
        """
        self._run.check_owned()
        records = self._table.roles() if role is None else [self._table.role(role)]
        for record in reversed(records) if reverse_order else records:
            self._life.end(record, replace(self._ending, last_first=reverse_order))

    async def set_worker_env(self, worker_id: str, env: dict[str, str]) -> None:
        """Changes a living worker's environment; forks made later see it too.

        Raises:
            WorkerNotFoundError: No such worker.
            WorkerFailedError: It is dead.
            WorkerTimeoutError: It does not answer.
        """
        await self.calls.set_env(worker_id, env)

    async def create_engine(
        self, worker_id: str, engine: str | type, engine_name: str | None = None, *args: Any, **kwargs: Any
    ) -> Any:
        """Makes an engine on a worker, on the engine thread that its methods will run on.

        Raises:
            EngineImportError: The class cannot be imported there, or is refused.
            EngineCreationError: One of that name exists, or the constructor raised.
        """
        await self.calls.create_engine(worker_id, engine, args, kwargs, CallOptions(engine=engine_name))

    def call_engine(
        self,
        worker_id: str,
        method: str,
        engine_name: str | None = None,
        *args: Any,
        rpc_meta: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Calls an engine's method and waits. Errors as `PendingCall.result`."""
        options = CallOptions(engine=engine_name)
        return self.calls.submit(worker_id, method, args, kwargs, options, rpc_meta=rpc_meta).result()

    async def async_call_engine(
        self,
        worker_id: str,
        method: str,
        engine_name: str | None = None,
        *args: Any,
        rpc_meta: Any = None,
        **kwargs: Any,
    ) -> Any:
        """The same, without blocking the event loop."""
        options = CallOptions(engine=engine_name)
        return await self.calls.submit(worker_id, method, args, kwargs, options, rpc_meta=rpc_meta)

    # Beyond it.

    def start(self, role: str, replicas: int = 1, **options: Unpack[StartKeywords]) -> Role:
        """Starts a role from keywords and returns it when it is ready.

        Args:
            target: Role in whose slots to live.
            fork: With a target: processes of its own there (True), or the target's own (False).
            tasks: One spec for each worker, instead of keywords.
            process_group: Its workers form one, see `Job.process_group`.
            options: These, and fields of `SchedulingSpec`, the same for all workers.
        """
        self.create_workers(job_of(role, replicas, options))
        return Role(self, role)

    async def astart(self, role: str, replicas: int = 1, **options: Unpack[StartKeywords]) -> Role:
        """The same, without blocking the event loop; `asyncio.gather` starts several roles at once.

        A start that is cancelled goes on; delete the role then.
        """
        return await asyncio.to_thread(partial(self.start, role, replicas, **options))

    def restart_worker(self, worker_id: str, *, engines: bool = True) -> None:
        """Starts a worker again, in its slot and under its id, whether it died or not; nothing else restarts anything.

        Calls to its last process fail as before, and what it stored is gone. Its forks live on. It keeps its ports.
        Until its engines are there it is not alive, and calls raise WorkerFailedError.

        Args:
            engines: Make its engines again, with the arguments with which they were made.

        Raises:
            WorkerNotFoundError: No such worker.
            WorkerFailedError: It is being restarted already.
            WorkerCreationError: It could not be started, or its guard is lost and, on a cluster, its place with it. The
                worker is dead then. Or it is a fork whose target is dead; then nothing was done.
            EngineCreationError: An engine's constructor raised. The worker is dead; another restart makes all engines.
        """
        self._run.check_startable()
        self._life.restart(worker_id, self._ending, engines=engines)

    @property
    def home(self) -> Home:
        """The run's references to tensors."""
        return self.calls.home

    def scope(self) -> AbstractContextManager[Any]:
        """Frees, at the end of its block, every handle that became known inside it, except what `keep` marks."""
        return self.home.scope()

    def subscribe(self, listener: Listener) -> None:
        """Calls `listener(topic, facts)` for `exited`, `stalled`, `resumed`, `guard_lost` and, on a cluster, `notice`.

        `notice`: the cluster's manager is about to end `role` in about `seconds`; time to save. Listeners run on the
        I/O thread and must not wait there: let them set an event that the controller looks at.
        """
        self._watch.listeners.append(listener)

    def inspect(self) -> RunState:
        """The run as it is now: its guards, roles and workers, with their pids, hosts, devices and states.

        The same value is kept in `state.json` for the command line. It is a snapshot; nothing is asked of any process.
        """
        return self._watch.state()

    @property
    def run_dir(self) -> str:
        return str(self._run.run_dir)

    @property
    def run_id(self) -> str:
        return self._run.run_id

    # Lifecycle.

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close(graceful=kind is None or issubclass(kind, Exception))

    def close(self, *, graceful: bool = True) -> None:
        """Ends everything. May be called twice. Not graceful skips `destroy()` and the grace before SIGKILL."""
        if self._run.closing or os.getpid() != self._run.pid:  # a forked child's copy owns nothing
            return
        if self._io.on_thread:
            raise RuntimeError("a listener cannot close the scheduler that calls it; do it in another thread")
        self._run.closing = True
        with contextlib.ExitStack() as ends:  # each of them runs, whatever happens in those before, Ctrl-C included
            ends.callback(self._undo.close)
            ends.callback(self._watch.write_state, ended=True)
            ends.callback(self._sweep)
            ends.callback(lambda: self.placement.close(graceful=graceful))
            try:
                for record in reversed(self._table.roles()):
                    self._life.end(record, self._ending if graceful else Ending())
            except BaseException:
                graceful = False  # whoever interrupts has waited long enough
                raise

    def _sweep(self) -> None:
        """Kills what bears the run's id and has outlived everybody who should have ended it."""
        if self.placement.starts_processes:
            sweep(self._run.run_id, runtime_dir=self._run.runtime_dir)

    def _sweep_after_error(self, kind: object, error: object, tb: object) -> None:
        if kind is not None:
            self._sweep()
