"""Calls to living workers, from the table of a run: to their engines, and about them to their guards."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any, TypeVar

from rolecall.errors import (
    EncodeError,
    WorkerConfigurationError,
    WorkerFailedError,
    WorkerNotFoundError,
    WorkerTimeoutError,
)
from rolecall.protocol.guard import SET_ENV, STACKS, Method, SetEnv, Stacks
from rolecall.protocol.message import Message
from rolecall.protocol.programs import may_host_engines
from rolecall.protocol.worker_methods import (
    CALL,
    CREATE_ENGINE,
    DESTROY,
    DESTROY_MARGIN_S,
    DESTROY_TIMEOUT_S,
    CallMethod,
    CreateEngine,
    Destroy,
    WorkerRequest,
)
from rolecall.scheduler.calls import (
    CallOptions,
    EngineClass,
    EngineRequest,
    PendingCall,
    PendingStream,
    argument_place,
    engine_path,
)
from rolecall.scheduler.gathering import all_sent
from rolecall.scheduler.programs import ProgramPeer
from rolecall.scheduler.run import Run
from rolecall.scheduler.table import Member, Table
from rolecall.tensors.backends.shm import ShmBackend
from rolecall.tensors.fetch import Cache, Fetcher
from rolecall.tensors.lifetime import Home
from rolecall.transport.client import Client
from rolecall.transport.handshake import Hello
from rolecall.transport.loop import IOThread
from rolecall.transport.peer import Call, Peer, Prepared
from rolecall.types import TensorPolicy, Worker, check_env

CACHE_BYTES = 1 << 30
CONTROL_TIMEOUT_S = 30.0
Q = TypeVar("Q", bound=Message)


class WorkerCalls:
    """Sends calls to the workers of a run.

    Args:
        tensors: What calls do with tensors in results when the call does not say.

    Attributes:
        home: The run's references to tensors.
    """

    def __init__(self, run: Run, io: IOThread, table: Table, tensors: TensorPolicy) -> None:
        self._run, self._io, self._table, self._tensors = run, io, table, tensors
        self.home = Home(Fetcher(self.peer, Cache(CACHE_BYTES), {"shm": ShmBackend()}))

    def connect(self, member: Member) -> None:
        """Begins the conversation with a worker, or with a program that may host engines."""
        worker = member.worker
        if not member.started.socket:
            if may_host_engines(member.slot.ready):
                member.conversation = ProgramPeer(worker, member.slot.argv or (), self._io.loop)
            return
        addresses = [f"unix:{member.started.socket}"] if member.guard.here else []
        addresses.append(f"tcp:{worker.ip}:{worker.worker_ports[0]}")
        peer = Peer(member.id, loop=self._io.loop, context=self.home)
        member.conversation = Client(peer, addresses, self._run.token, Hello(name="controller"))

    def submit(
        self,
        worker_id: str,
        method: str,
        args: Sequence[Any],
        kwargs: dict[str, Any],
        options: CallOptions,
        *,
        rpc_meta: Any = None,
    ) -> PendingCall[Any]:
        """Sends a call and returns at once.

        Raises:
            WorkerNotFoundError: No such worker.
            WorkerFailedError: It died before.
            EncodeError: An argument is not serializable; nothing was sent.
        """
        wanted = self._wanted(method, options, rpc_meta)
        call = _request(self._living(worker_id), CALL.name, [[*args], kwargs], wanted, options.timeout)
        return PendingCall(call, worker_id, method, options.timeout)

    def submit_all(
        self, worker_ids: Sequence[str], method: str, args: Sequence[Any], kwargs: dict[str, Any], options: CallOptions
    ) -> list[PendingCall[Any]]:
        """Sends one call to all of them, or to none, and returns at once. Errors as `submit`."""
        conversations = [member.conversation for member in self._members(worker_ids)]
        clients = [each for each in conversations if isinstance(each, Client)]
        if len(clients) < len(worker_ids):  # there are programs, which are asked over HTTP
            return all_sent(self.submit(worker_id, method, args, kwargs, options) for worker_id in worker_ids)
        timeout = options.timeout
        try:
            prepared = Prepared.of(CALL.name, [[*args], kwargs], self._wanted(method, options))
        except EncodeError as e:
            raise _as_written(e) from None
        return all_sent(
            PendingCall(client.peer.send(prepared, timeout), worker_id, method, timeout)
            for client, worker_id in zip(clients, worker_ids, strict=True)
        )

    def stream(
        self, worker_id: str, method: str, args: Sequence[Any], kwargs: dict[str, Any], options: CallOptions
    ) -> PendingStream:
        """Sends a call of a generator method and returns at once. Errors as `submit`."""
        wanted = self._wanted(method, options)
        member = self._living(worker_id)
        call = _request(member, CALL.name, [[*args], kwargs], wanted, options.timeout, streaming=True)
        return PendingStream(call, worker_id, method, options.timeout)

    def _wanted(self, method: str, options: CallOptions, rpc_meta: Any = None) -> CallMethod:
        tensors = options.tensors or self._tensors
        return CallMethod(method=method, engine_name=options.engine, tensors=tensors, rpc_meta=rpc_meta)

    def create_engine(
        self, worker_id: str, engine: EngineClass, args: Sequence[Any], kwargs: dict[str, Any], options: CallOptions
    ) -> PendingCall[Any]:
        """Asks for an engine and returns at once. Errors as `submit`. A restart of the worker makes it again."""
        member, request = self._living(worker_id), EngineRequest(engine, args, kwargs, options)
        pending = self.make_engine(member, request)
        member.engines.setdefault(options.engine, request)
        pending.add_done_callback(partial(_remember, member.engines, request))
        return pending

    def make_engine(self, member: Member, request: EngineRequest) -> PendingCall[Any]:
        """As `create_engine`, also on a worker that is being restarted, and what it remembers stays as it is."""
        engine, args, kwargs, options = request
        wanted = CreateEngine(engine=engine_path(engine), engine_name=options.engine)
        call = _request(member, CREATE_ENGINE.name, [[*args], kwargs], wanted, options.timeout)
        return PendingCall(call, member.id, CREATE_ENGINE.name, options.timeout)

    def destroy_engine(self, worker_id: str, options: CallOptions) -> PendingCall[Any]:
        """Asks for the end of an engine and returns at once. Errors as `submit`."""
        member = self._living(worker_id)
        limit = DESTROY_TIMEOUT_S if options.timeout is None else options.timeout
        wanted = Destroy(engines=[options.engine or worker_id], timeout=limit)
        call = _peer(member).request(DESTROY.name, wanted, timeout=limit + DESTROY_MARGIN_S)
        member.engines.pop(options.engine, None)  # a program, which refuses, keeps it
        return PendingCall(call, worker_id, DESTROY.name, limit + DESTROY_MARGIN_S)

    def set_env(self, worker_id: str, env: dict[str, str]) -> PendingCall[Any]:
        """Asks for other variables in a worker's environment and returns at once. Errors as `submit`."""
        for key, value in env.items():
            check_env(key, value)
        call = self._control(worker_id, SET_ENV, SetEnv(worker=worker_id, env=env))
        kept = self._table.member(worker_id).env
        before = {key: kept[key] for key in env if key in kept}
        kept.update(env)
        call.add_done_callback(partial(_put_back, kept, env, before))
        return call

    def stacks(self, worker_id: str) -> str:
        """The Python stacks of a worker's threads, read from outside. Errors as `Scheduler.set_worker_env`."""
        return str(self._control(worker_id, STACKS, Stacks(worker=worker_id)).result())

    def check_living(self, worker_ids: Sequence[str]) -> None:
        """Raises what a call to one of them would raise at once: WorkerNotFoundError, WorkerFailedError."""
        self._members(worker_ids)

    def is_alive(self, worker_id: str) -> bool:
        """Whether a worker can be called. Raises WorkerNotFoundError when its role was deleted."""
        try:
            return self._table.living(worker_id).failed is None
        except WorkerFailedError:
            return False

    def worker(self, worker_id: str) -> Worker:
        """Where a worker is. Raises WorkerNotFoundError, WorkerFailedError."""
        return self._living(worker_id).worker

    def hosts_of(self, role: str) -> tuple[list[str], bool]:
        """Ids of the workers that host a role's engines, and whether they are its target's (colocation, no fork)."""
        record = self._table.role(role)
        return [m.id for m in record.members], record.borrowed

    def _control(self, worker_id: str, method: Method[Q, Any], request: Q) -> PendingCall[Any]:
        call = self._living(worker_id).guard.ask(method, request, timeout=CONTROL_TIMEOUT_S)
        return PendingCall(call, worker_id, method.name, CONTROL_TIMEOUT_S)

    def _living(self, worker_id: str) -> Member:
        return self._members([worker_id])[0]

    def _members(self, worker_ids: Sequence[str]) -> list[Member]:
        """All of them, if none has died or is being restarted."""
        self._run.check_usable()
        return [*map(self._table.living, worker_ids)]

    def peer(self, worker_id: str, addresses: tuple[str, ...] = ()) -> Peer:
        """The conversation with a worker that hosts engines. A dead one is an error: its shards are gone with it."""
        member = self._living(worker_id)
        if not isinstance(member.conversation, Client):
            raise WorkerNotFoundError(worker_id, self._table.ids())
        return member.conversation.peer


def _as_written(error: EncodeError) -> EncodeError:
    """It, naming a place in the arguments as the caller wrote them."""
    return EncodeError(argument_place(error.place), error.type_name, error.hint)


def _request(
    member: Member, method: str, arguments: Any, wanted: WorkerRequest, timeout: float | None, streaming: bool = False
) -> Call:
    try:
        return _peer(member).request(method, arguments, meta=wanted, timeout=timeout, streaming=streaming)
    except EncodeError as e:
        raise _as_written(e) from None


def _peer(member: Member) -> Peer | ProgramPeer:
    if member.conversation is None:
        what = f"worker {member.id} runs a program and hosts no engines"
        expected = "one that does, over HTTP, is started with ready='/health'; see docs/http.md"
        raise WorkerConfigurationError(what, member.slot.argv, expected)
    return member.conversation.peer


def _put_back(kept: dict[str, str], env: dict[str, str], before: dict[str, str], done: Future[Any]) -> None:
    """Forgets variables that were not set."""
    if done.cancelled() or done.exception() is not None:
        for key in env:
            kept.pop(key, None)
        kept.update(before)


def _remember(engines: dict[str | None, EngineRequest], request: EngineRequest, made: Future[Any]) -> None:
    """Forgets an engine that was not made. One that was given up, by a timeout or a cancellation, may have been."""
    name = request.options.engine
    if made.cancelled() or isinstance(error := made.exception(), WorkerTimeoutError):
        return
    if error is None:
        engines[name] = request
    elif engines.get(name) is request:
        del engines[name]
