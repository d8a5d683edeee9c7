"""Role: the friendly face of a group of equal workers. It owns nothing; the scheduler does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, overload

from rolecall.errors import WorkerConfigurationError, WorkerFailedError
from rolecall.protocol.state import WorkerState
from rolecall.scheduler.calls import CallOptions, PendingCall
from rolecall.types import Job, SchedulingSpec, SchedulingStrategy, TensorPolicy, Worker

if TYPE_CHECKING:
    from rolecall.scheduler.scheduler import Scheduler

_UNSET: Any = object()


class Role(Sequence["RoleWorker"]):
    """All workers of a role. Calls go to every one of them at the same time and return a list, one result each."""

    def __init__(self, scheduler: Scheduler, name: str, options: CallOptions | None = None) -> None:
        self._scheduler, self.name = scheduler, name
        self._options = options or CallOptions()
        self._ids, self._borrowed = scheduler.calls.hosts_of(name)

    def __repr__(self) -> str:
        return f"Role({self.name!r}, {len(self)} worker(s))"

    def __len__(self) -> int:
        return len(self._ids)

    @overload
    def __getitem__(self, index: int) -> RoleWorker: ...
    @overload
    def __getitem__(self, index: slice) -> list[RoleWorker]: ...
    def __getitem__(self, index: int | slice) -> RoleWorker | list[RoleWorker]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"role {self.name!r} has {len(self)} worker(s), none at index {index}")
        position = range(len(self))[index]
        return RoleWorker(self._scheduler, self._ids[position], self._options_of(position))

    def __iter__(self) -> Iterator[RoleWorker]:
        return (self[i] for i in range(len(self)))

    @property
    def workers(self) -> list[Worker]:
        """Where the workers are."""
        return self._scheduler.get_workers(self.name)

    def inspect(self) -> list[WorkerState]:
        """The workers as they are now, the failed ones too: pid, host, devices, state, since when. Nothing is asked."""
        state = self._scheduler.inspect()
        return [state.worker(worker_id) for worker_id in self._ids]

    def with_options(
        self, *, timeout: float | None = _UNSET, engine: str | None = _UNSET, tensors: TensorPolicy | None = _UNSET
    ) -> Role:
        """The same role with other options for its calls.

        Args:
            timeout: Seconds to wait for each call; None waits as long as the worker lives.
            engine: Name of the engine to call.
            tensors: `remote` leaves tensors where they are made and brings handles; `local` brings them whole.
        """
        return Role(self._scheduler, self.name, changed(self._options, timeout, engine, tensors))

    def create_engine(self, engine: str | type, *args: Any, **kwargs: Any) -> None:
        """Makes an engine on every worker, at the same time. Errors as `Scheduler.create_engine`."""
        _gather(self._send(lambda w: w.submit_engine(engine, args, kwargs)))

    async def acreate_engine(self, engine: str | type, *args: Any, **kwargs: Any) -> None:
        """The same, without blocking the event loop."""
        await _agather(self._send(lambda w: w.submit_engine(engine, args, kwargs)))

    def call(self, method: str, *args: Any, **kwargs: Any) -> list[Any]:
        """Calls a method on every worker with the same arguments. Raises the first error, after all have ended.

        When one of them is dead already, none is called. Ctrl-C gives the calls up, see `PendingCall.cancel`.
        """
        return _gather(self.submit(method, *args, **kwargs))

    async def acall(self, method: str, *args: Any, **kwargs: Any) -> list[Any]:
        """The same, without blocking the event loop."""
        return await _agather(self.submit(method, *args, **kwargs))

    def submit(self, method: str, *args: Any, **kwargs: Any) -> list[PendingCall]:
        """Sends the call to every worker and returns at once, one pending call each."""
        return self._send(lambda w: w.submit(method, *args, **kwargs))

    def map(self, method: str, arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Calls a method on every worker, each with its own tuple of arguments."""
        return _gather(self._scatter(method, arguments))

    async def amap(self, method: str, arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        """The same, without blocking the event loop."""
        return await _agather(self._scatter(method, arguments))

    def fork(self, role: str, command: str | Sequence[str] | None = None, *, ready: Any = None) -> Role:
        """Starts `role/i` in the slot of this role's worker i. See `Scheduler.fork_workers`."""
        self._scheduler.fork_workers(role, self.name, command, ready=ready)
        return Role(self._scheduler, role)

    def set_env(self, env: dict[str, str]) -> None:
        """Changes the environment of every worker; forks made later see it. Errors as `Scheduler.set_worker_env`."""
        _gather(self._send(lambda w: self._scheduler.calls.set_env(w.id, env)))

    async def aset_env(self, env: dict[str, str]) -> None:
        """The same, without blocking the event loop."""
        await _agather(self._send(lambda w: self._scheduler.calls.set_env(w.id, env)))

    def delete(self) -> None:
        """Ends the role and what was forked from it."""
        self._scheduler.delete_workers(self.name)

    def _scatter(self, method: str, arguments: Sequence[tuple[Any, ...]]) -> list[PendingCall]:
        if len(arguments) != len(self):
            expected = f"one tuple for each of the {len(self)} workers"
            raise WorkerConfigurationError("wrong number of argument tuples", len(arguments), expected)
        for args in arguments:
            if not isinstance(args, tuple | list):  # a str would fall apart into its letters
                expected = f"one tuple of arguments for each worker, as in map({method!r}, [(1,), (2,)])"
                raise WorkerConfigurationError("arguments of a worker that are no tuple", args, expected)
        each = iter(arguments)
        return self._send(lambda w: w.submit(method, *next(each)))

    def _send(self, submit: Callable[[RoleWorker], PendingCall]) -> list[PendingCall]:
        """To all or to none: workers that wait in a collective for one that was never asked would wait for ever."""
        self._scheduler.calls.check_living(self._ids)
        calls: list[PendingCall] = []
        try:
            for worker in self:
                calls.append(submit(worker))
        except BaseException:
            _cancel(calls)
            raise
        return calls

    def _options_of(self, index: int) -> CallOptions:
        """A role without workers of its own names its engines after itself on its target's workers."""
        if self._borrowed and self._options.engine is None:
            return replace(self._options, engine=f"{self.name}/{index}")
        return self._options


class RoleWorker:
    """One worker of a role."""

    def __init__(self, scheduler: Scheduler, worker_id: str, options: CallOptions) -> None:
        self._scheduler, self.id, self._options = scheduler, worker_id, options

    def __repr__(self) -> str:
        return f"RoleWorker({self.id!r})"

    @property
    def worker(self) -> Worker:
        """Where it is."""
        role, _, index = self.id.rpartition("/")
        return self._scheduler.get_workers(role)[int(index)]

    def with_options(
        self, *, timeout: float | None = _UNSET, engine: str | None = _UNSET, tensors: TensorPolicy | None = _UNSET
    ) -> RoleWorker:
        """As `Role.with_options`."""
        return RoleWorker(self._scheduler, self.id, changed(self._options, timeout, engine, tensors))

    def create_engine(self, engine: str | type, *args: Any, **kwargs: Any) -> None:
        """Makes an engine here."""
        _gather([self.submit_engine(engine, args, kwargs)])

    def call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Calls a method and waits for its result. Ctrl-C gives the call up."""
        return _gather([self.submit(method, *args, **kwargs)])[0]

    async def acall(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """The same, without blocking the event loop."""
        return await self.submit(method, *args, **kwargs)

    def submit(self, method: str, *args: Any, **kwargs: Any) -> PendingCall:
        """Sends the call and returns at once."""
        return self._scheduler.calls.submit(self.id, method, args, kwargs, self._options)

    def submit_engine(self, engine: str | type, args: Sequence[Any], kwargs: dict[str, Any]) -> PendingCall:
        return self._scheduler.calls.create_engine(self.id, engine, args, kwargs, self._options)

    def stream(self, method: str, *args: Any, **kwargs: Any) -> Iterator[Any]:
        """Iterates over what a generator method yields, as it yields it. The call is sent at once.

        It is cancelled when the iterator is closed or dropped, read or not.
        """
        return self._stream(method, args, kwargs).items()

    def astream(self, method: str, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        """The same for `async for`."""
        return self._stream(method, args, kwargs).aitems()

    def stacks(self) -> str:
        """The Python stacks of its threads, read from outside."""
        return self._scheduler.calls.stacks(self.id)

    def _stream(self, method: str, args: Sequence[Any], kwargs: dict[str, Any]) -> PendingCall:
        return self._scheduler.calls.submit(self.id, method, args, kwargs, self._options, streaming=True)


def job_of(
    role: str,
    replicas: int,
    target: str | None,
    fork: bool,
    tasks: Sequence[SchedulingSpec] | None,
    fields: dict[str, Any],
) -> Job:
    """The job that keywords describe: fields of one spec for all workers, or `tasks` with one for each."""
    if tasks is not None and fields:
        raise WorkerConfigurationError("both tasks and fields of a spec", sorted(fields), "give one of the two")
    unknown = set(fields) - set(SchedulingSpec.__dataclass_fields__)
    if unknown:
        known = ", ".join(SchedulingSpec.__dataclass_fields__)
        raise WorkerConfigurationError("unknown field of a spec", sorted(unknown), f"there are {known}")
    strategy = SchedulingStrategy("colocation", target, fork) if target else SchedulingStrategy()
    return Job(role, replicas, tasks or [SchedulingSpec(**fields)], strategy)


def changed(options: CallOptions, timeout: Any, engine: Any, tensors: Any) -> CallOptions:
    """`options` with those replaced that were given."""
    given = {"timeout": timeout, "engine": engine, "tensors": tensors}
    return replace(options, **{k: v for k, v in given.items() if v is not _UNSET})


def _gather(calls: Sequence[PendingCall]) -> list[Any]:
    """Waits for all; then raises an error if there was one, so that no worker still runs a call that was given up."""
    results: list[Any] = []
    errors: list[BaseException] = []
    for call in calls:
        try:
            results.append(call.result())
        except Exception as e:
            errors.append(e)
        except BaseException:  # nobody else knows these calls
            _cancel(calls)
            raise
    if errors:
        raise _cause(errors)
    return results


async def _agather(calls: Sequence[PendingCall]) -> list[Any]:
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    errors = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
    if errors:
        raise _cause(errors)
    return list(outcomes)


def _cancel(calls: Sequence[PendingCall]) -> None:
    for call in calls:
        call.cancel()


def _cause(errors: Sequence[BaseException]) -> BaseException:
    """A worker's death before whatever the others say, since a broken collective is most likely its consequence."""
    return next((e for e in errors if isinstance(e, WorkerFailedError)), errors[0])
