"""The scheduler: one code for all backends. It plans, starts, calls and ends workers through guards.

A backend places guards. It fills the hooks `_begin`, `_plan`, `_place`, `_withdraw` and `_end_guards`; everything else
is here and in the files beside this one.
"""

from __future__ import annotations

import contextlib
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, ClassVar, Self, TypeVar

from rolecall.errors import EncodeError, WorkerConfigurationError, WorkerNotFoundError
from rolecall.placement.launching import guard_config
from rolecall.placement.plan import Plan, forked_slots
from rolecall.protocol.devices import CUDA
from rolecall.protocol.environment import WORKER
from rolecall.protocol.guard import SET_ENV, STACKS, Method, SetEnv, Stacks
from rolecall.protocol.guard_config import GuardConfig
from rolecall.protocol.message import Message
from rolecall.protocol.state import RunState
from rolecall.scheduler.calls import CallOptions, PendingCall, argument_place, engine_path
from rolecall.scheduler.guards import GuardProxy
from rolecall.scheduler.lifecycle import RoleLifecycle
from rolecall.scheduler.listener import GuardListener
from rolecall.scheduler.roles import Role, job_of
from rolecall.scheduler.run import Run
from rolecall.scheduler.starting import Group, Starter
from rolecall.scheduler.supervision import Listener, Supervision
from rolecall.scheduler.table import Member, RoleRecord, Start, Table
from rolecall.tensors.backends.shm import ShmBackend
from rolecall.tensors.cache import Cache
from rolecall.tensors.fetch import Fetcher
from rolecall.tensors.lifetime import Home
from rolecall.transport.call import fresh
from rolecall.transport.client import Client
from rolecall.transport.loop import IOThread
from rolecall.transport.peer import Peer
from rolecall.types import (
    Job,
    SchedulingSpec,
    TensorBackend,
    TensorPolicy,
    Worker,
    check_env,
    check_name,
    check_seconds,
    check_tensor_backend,
    check_tensors,
    worker_id,
)

CACHE_BYTES = 1 << 30
Q = TypeVar("Q", bound=Message)
CONTROL_TIMEOUT_S = 30.0


class Scheduler(ABC):
    """Places and supervises workers. A context manager: leaving the block ends everything it started.

    Args:
        experiment: First part of the run directory's name.
        trial: Second part; the time of the start when None.
        fileroot: Where run directories are made; `~/.rolecall` when None.
        tensors: What calls do with tensors in results when the call does not say: `local` or `remote`.
        tensor_backend: Where workers leave tensors: `shm`, which others on the host map, `wire`, which others ask for,
            or `ray`, the object store of the cluster that RAY_ADDRESS names in the workers' environment.
        preload: Modules that the guards' template processes import before workers are forked from them.
        start_timeout: Seconds within which a role must be ready.
        grace_s: Seconds between SIGTERM and SIGKILL when workers are ended.
        lease_s: Seconds that a guard lives on without a sign of life of the controller.
        quiet: Do not print the line that says where the run listens and keeps its files.
    """

    n_gpus_per_node: int
    backend: ClassVar[str] = ""  # in the run's state, for who ends it from outside
    further_options: ClassVar[Sequence[str]] = ()  # beside the keywords of the constructors

    def __init__(
        self,
        *,
        experiment: str = "default",
        trial: str | None = None,
        fileroot: str | os.PathLike[str] | None = None,
        tensors: TensorPolicy = "local",
        tensor_backend: TensorBackend = "shm",
        preload: Sequence[str] = ("torch",),
        start_timeout: float = 120.0,
        grace_s: float = 5.0,
        lease_s: float = 30.0,
        quiet: bool = False,
    ) -> None:
        _refuse_inside_worker()
        check_tensors(tensors)
        check_tensor_backend(tensor_backend)
        check_seconds("start_timeout", start_timeout)
        check_seconds("grace_s", grace_s)
        check_seconds("lease_s", lease_s, 0.1)
        self._tensors: TensorPolicy = tensors
        self._tensor_backend: TensorBackend = tensor_backend
        self._preload, self._lease_s, self._grace_s = list(preload), lease_s, grace_s
        self._start_timeout = start_timeout
        self._table = Table()
        self._closed = False
        self._run = Run(experiment, trial, fileroot, self.backend)
        self._pid = os.getpid()
        with contextlib.ExitStack() as undo:  # Ctrl-C may come at any line of this
            self._open(undo)
            self._begin()
            with contextlib.ExitStack() as ends:
                ends.callback(self._end_guards, graceful=False)
                if not quiet:
                    self._announce()
                ends.pop_all()
            self._undo = undo.pop_all()

    def _open(self, undo: contextlib.ExitStack) -> None:
        undo.callback(self._run.close)
        self._run.open()
        self._io = IOThread("rolecall-io")
        undo.callback(self._io.close)
        backends = {"shm": ShmBackend()}
        self.home = Home(self._peer_of, Fetcher(self._peer_of, Cache(CACHE_BYTES), backends))
        undo.callback(self.home.close)
        self._watch = Supervision(self._run, self._table)
        self._hub = GuardListener(
            self._run, self._io, lease_s=self._lease_s, on_event=self._watch.on_event, on_lost=self._watch.on_guard_lost
        )
        undo.callback(self._hub.close)
        self._watch.guards = self._hub.guards
        self._hub.open()
        self._watch.write_state()  # before anything is started, so that `rolecall stop` knows the run's id
        starter = Starter(self._io, self._connect, timeout=self._start_timeout, device_var=self._device_var())
        self._life = RoleLifecycle(self._table, starter, self._watch, self._withdraw)

    def _announce(self) -> None:
        run = self._run
        where = " and ".join(self._hub.addresses)
        line = (
            f"rolecall: run {run.experiment}/{run.trial} listens on {where}; auth on, TLS off; files in {run.run_dir}"
        )
        with contextlib.suppress(OSError, ValueError):  # nobody reads stderr any more, or it was closed
            if sys.stderr is not None:
                print(line, file=sys.stderr, flush=True)

    # What a backend says and does.

    @abstractmethod
    def _begin(self) -> None:
        """The last thing of the constructor: starts what is needed from the beginning. An error undoes all the rest."""

    @abstractmethod
    def _plan(self, job: Job) -> Plan:
        """What a role with slots of its own would get.

        Raises:
            GPUAllocationError: More devices than are free.
        """

    @abstractmethod
    def _place(self, job: Job) -> tuple[Plan, list[GuardProxy]]:
        """Plans a role, takes its devices, and brings up guards; returns the guard of each slot, all of them there."""

    @abstractmethod
    def _withdraw(self, members: Sequence[str], role: str) -> None:
        """Gives back what `_place` took for these workers, and ends guards that were placed for them alone."""

    @abstractmethod
    def _end_guards(self, *, graceful: bool) -> None:
        """Ends every guard and proves it gone."""

    def _device_var(self) -> str:
        return CUDA

    # The reference system's interface.

    def plan(self, job: Job) -> Plan:
        """What `create_workers(job)` would start, without starting it.

        Raises:
            GPUAllocationError: More devices than are free.
            WorkerNotFoundError: The target of a colocation does not exist.
        """
        strategy = job.scheduling_strategy
        if strategy.type == "separation":
            return self._plan(job)
        target = self._target_of(job)
        slots = forked_slots(job.role, target.slots(), job.specs()) if strategy.fork else ()
        return Plan(job.role, slots, target.name)

    def create_workers(self, job: Job) -> list[str]:
        """Starts a role; returns its worker ids, in order, when every one is ready.

        Raises:
            WorkerCreationError: The role exists, or a worker failed (then none of the role is left).
            WorkerNotFoundError: The target of a colocation does not exist.
            GPUAllocationError: More devices than are free.
            PortAllocationError: More ports than are free.
        """
        self._refuse_when_closed()
        if job.scheduling_strategy.type == "colocation":
            return self._colocate(job)
        with self._life.starting(Start(job.role)) as start:
            try:
                plan, places = self._place(job)
                return self._life.bring_up(start, Group(job.role, plan.slots, places))
            except BaseException:
                self._withdraw([worker_id(job.role, i) for i in range(job.replicas)], job.role)
                raise

    def get_workers(self, role: str, timeout: float | None = None) -> list[Worker]:
        """The workers of a role, in order.

        Raises:
            WorkerNotFoundError: No such role.
            WorkerFailedError: One of them died.
            WorkerTimeoutError: The role is being started and was not ready in time.
        """
        record = self._table.wait_for(role, timeout)
        for member in record.members:
            if member.failed is not None:
                raise fresh(member.failed)
        return [m.worker for m in record.members]

    def fork_workers(
        self,
        role: str,
        target_role: str,
        command: str | Sequence[str] | None = None,
        *,
        ready: str | dict[str, Any] | None = None,
    ) -> list[str]:
        """Starts `role/i` in the slot of `target_role/i`, all at the same time; returns their ids when all are ready.

        Args:
            command: None hosts engines; a dotted module runs as `python -m module`; a list is a program with
                placeholders `{host} {port} {ports[1]} {role} {index} {devices} {python}`.
            ready: For commands: an HTTP path, `"tcp"`, or `{"log": "regex"}`; None waits a moment.

        Raises:
            WorkerNotFoundError: No such target; names the roles there are.
            WorkerCreationError: The role exists, or a worker failed; the others are dead and their ports free.
        """
        self._refuse_when_closed()
        check_name("role", role)
        target = self._table.role(target_role)
        specs = [SchedulingSpec(cmd=command, ready=ready)] * len(target.members)
        return self._fork(role, target, specs)

    def delete_workers(self, role: str | None = None, reverse_order: bool = False) -> None:
        """Ends a role, or all of them in the order they were made (or the reverse). Forks go before their target.

        Raises:
            WorkerNotFoundError: No such role.
        """
        self._refuse_in_a_child()
        records = self._table.roles() if role is None else [self._table.role(role)]
        for record in reversed(records) if reverse_order else records:
            self._life.end(record, self._grace_s)

    async def set_worker_env(self, worker_id: str, env: dict[str, str]) -> None:
        """Changes a living worker's environment; forks made later see it too.

        Raises:
            WorkerNotFoundError: No such worker.
            WorkerFailedError: It is dead.
            WorkerTimeoutError: It does not answer.
        """
        await self.submit_env(worker_id, env)

    async def create_engine(
        self, worker_id: str, engine: str | type, engine_name: str | None = None, *args: Any, **kwargs: Any
    ) -> Any:
        """Makes an engine on a worker, on the engine thread that its methods will run on.

        Raises:
            EngineImportError: The class cannot be imported there, or is refused.
            EngineCreationError: One of that name exists, or the constructor raised.
        """
        await self.submit_engine(worker_id, engine, engine_name, args, kwargs, CallOptions())

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
        return self.submit(worker_id, method, args, kwargs, CallOptions(engine=engine_name), rpc_meta=rpc_meta).result()

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
        return await self.submit(worker_id, method, args, kwargs, CallOptions(engine=engine_name), rpc_meta=rpc_meta)

    # The friendly interface and what it builds on.

    def start(
        self,
        role: str,
        replicas: int = 1,
        *,
        target: str | None = None,
        fork: bool = True,
        tasks: Sequence[SchedulingSpec] | None = None,
        **spec: Any,
    ) -> Role:
        """Starts a role from keywords and returns it when it is ready.

        Args:
            target: Role in whose slots to live.
            fork: With a target: processes of its own there (True), or the target's own (False).
            tasks: One spec for each worker, instead of keywords.
            spec: Fields of `SchedulingSpec`, the same for all workers.
        """
        self.create_workers(job_of(role, replicas, target, fork, tasks, spec))
        return Role(self, role)

    def scope(self) -> AbstractContextManager[Any]:
        """Frees, at the end of its block, every handle that became known inside it, except what `keep` marks."""
        return self.home.scope()

    def submit(
        self,
        worker_id: str,
        method: str,
        args: Sequence[Any],
        kwargs: dict[str, Any],
        options: CallOptions,
        *,
        rpc_meta: Any = None,
        streaming: bool = False,
    ) -> PendingCall:
        """Sends a call and returns at once.

        Raises:
            WorkerNotFoundError: No such worker.
            WorkerFailedError: It died before.
            EncodeError: An argument does not travel; nothing was sent.
        """
        meta = {"method": method, "engine_name": options.engine, "tensors": options.tensors or self._tensors}
        if rpc_meta is not None:
            meta["rpc_meta"] = rpc_meta
        return self._request(worker_id, "call", (tuple(args), kwargs), meta, options.timeout, streaming)

    def submit_engine(
        self,
        worker_id: str,
        engine: str | type,
        engine_name: str | None,
        args: Sequence[Any],
        kwargs: dict[str, Any],
        options: CallOptions,
    ) -> PendingCall:
        """Asks for an engine and returns at once."""
        meta = {"engine": engine_path(engine), "engine_name": engine_name}
        return self._request(worker_id, "create_engine", (tuple(args), kwargs), meta, options.timeout, False)

    def _request(
        self, worker_id: str, request: str, value: Any, meta: dict[str, Any], timeout: float | None, streaming: bool
    ) -> PendingCall:
        member = self._living(worker_id)
        if member.client is None:
            raise WorkerConfigurationError(f"worker {worker_id} runs a program and hosts no engines", member.slot.argv)
        try:
            call = member.client.peer.request(request, value, meta=meta, timeout=timeout, streaming=streaming)
        except EncodeError as e:
            raise EncodeError(argument_place(e.place), e.type_name, e.hint) from None
        return PendingCall(call, worker_id, meta.get("method", request), timeout)

    def members(self, role: str) -> list[str]:
        """Ids of the workers that host a role's engines; for colocation without a fork these are the target's."""
        return [m.id for m in self._table.role(role).members]

    def borrowed(self, role: str) -> bool:
        """True when the role lives in its target's own workers (colocation without a fork)."""
        return self._table.role(role).borrowed

    def check_living(self, worker_ids: Sequence[str]) -> None:
        """Raises what a call to one of them would raise at once: WorkerNotFoundError, WorkerFailedError."""
        for each in worker_ids:
            self._living(each)

    def submit_env(self, worker_id: str, env: dict[str, str]) -> PendingCall:
        """As `set_worker_env`, and returns at once."""
        for key, value in env.items():
            check_env(key, value)
        return self._control(worker_id, SET_ENV, SetEnv(worker=worker_id, env=env))

    def stacks(self, worker_id: str) -> str:
        """The Python stacks of a worker's threads, read from outside. Errors as `set_worker_env`."""
        return str(self._control(worker_id, STACKS, Stacks(worker=worker_id)).result())

    def _control(self, worker_id: str, method: Method[Q, Any], request: Q) -> PendingCall:
        answer = self._living(worker_id).guard.ask(method, request, timeout=CONTROL_TIMEOUT_S)
        return PendingCall(answer.call, worker_id, method.name, CONTROL_TIMEOUT_S)

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
        if self._closed or os.getpid() != self._pid:  # a forked child's copy owns nothing
            return
        if self._io.on_thread:
            raise RuntimeError("a listener cannot close the scheduler that calls it; do it in another thread")
        self._closed = self._watch.closing = True
        with contextlib.ExitStack() as ends:  # each of them runs, whatever happens in those before, Ctrl-C included
            ends.callback(self._undo.close)
            ends.callback(self._watch.write_state, ended=True)
            ends.callback(lambda: self._end_guards(graceful=graceful))
            try:
                self._end_roles(graceful)
            except BaseException:
                graceful = False  # whoever interrupts has waited long enough
                raise

    def _end_roles(self, graceful: bool) -> None:
        for record in reversed(self._table.roles()):
            self._life.end(record, self._grace_s if graceful else 0.0, destroy=graceful)

    def _guard_config(self, name: str, ip: str = "") -> GuardConfig:
        return guard_config(
            self._run,
            name,
            controller=self._hub.addresses,
            lease_s=self._lease_s,
            preload=self._preload,
            tensor_backend=self._tensor_backend,
            ip=ip,
        )

    # Starting roles.

    def _target_of(self, job: Job) -> RoleRecord:
        target = self._table.role(str(job.scheduling_strategy.target))
        if len(target.members) != job.replicas:
            what = f"role {job.role!r} has {job.replicas} replica(s), its target {target.name!r} {len(target.members)}"
            raise WorkerConfigurationError(what, None, "a colocated role needs as many as its target")
        return target

    def _colocate(self, job: Job) -> list[str]:
        target = self._target_of(job)
        if job.scheduling_strategy.fork:
            return self._fork(job.role, target, job.specs())
        for spec in job.specs():
            if spec.cmd is not None or spec.env_vars:
                seen = "cmd" if spec.cmd is not None else "env_vars"
                expected = f"role {job.role!r} would live in the processes of {target.name!r}; use fork=True"
                raise WorkerConfigurationError(
                    "colocation without a fork takes no program and no environment", seen, expected
                )
        with self._life.starting(Start(job.role, target)) as start:
            return self._life.enter(start, RoleRecord(job.role, target.members, target=target.name, borrowed=True))

    def _fork(self, role: str, target: RoleRecord, specs: Sequence[SchedulingSpec]) -> list[str]:
        slots = forked_slots(role, target.slots(), specs)
        with self._life.starting(Start(role, target)) as start:
            return self._life.bring_up(start, Group(role, slots, [m.guard for m in target.members]), target.name)

    def _connect(self, member: Member) -> None:
        worker = member.worker
        addresses = [f"unix:{member.socket}"] if member.guard.here else []
        addresses.append(f"tcp:{worker.ip}:{worker.worker_ports[0]}")
        hello = {"kind": "controller", "name": "controller", "run_id": self._run.run_id}
        member.client = Client(
            member.id, addresses, self._run.token, loop=self._io.loop, hello=hello, context=self.home
        )

    def _refuse_in_a_child(self) -> None:
        """A forked child shares the connections of its parent: a byte from it would break them."""
        if os.getpid() != self._pid:
            what = f"this process was forked from the controller, process {self._pid}"
            raise WorkerConfigurationError(what, None, "only the process that made a scheduler can use it")

    def _refuse_when_closed(self) -> None:
        self._refuse_in_a_child()
        if self._closed:
            what = f"the run {self._run.experiment}/{self._run.trial} has ended"
            raise WorkerConfigurationError(what, None, "use a scheduler and its roles inside the `with` block")

    def _living(self, worker_id: str) -> Member:
        self._refuse_when_closed()
        member = self._table.member(worker_id)
        if member.failed is not None:
            raise fresh(member.failed)
        return member

    def _peer_of(self, owner: str, addresses: tuple[str, ...]) -> Peer:
        """The conversation with a shard's owner; a dead owner is an error, since its shards are gone with it."""
        member = self._living(owner)
        if member.client is None:
            raise WorkerNotFoundError(owner, self._table.ids())
        return member.client.peer


def _refuse_inside_worker() -> None:
    if WORKER in os.environ and "__rolecall_main__" in sys.modules:
        what = "a scheduler was made while a worker loads this script"
        raise WorkerConfigurationError(what, None, "put the script's work under `if __name__ == '__main__':`")
