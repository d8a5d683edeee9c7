"""Roles and their workers as users see them: `Role`, `RoleWorker`. They own nothing; the scheduler does."""

from __future__ import annotations

import asyncio
import difflib
import inspect
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar, Unpack, cast, overload

from rolecall.errors import WorkerConfigurationError
from rolecall.protocol.state import WorkerState
from rolecall.scheduler.calls import CallOptions, EngineClass, Options, PendingCall, R, check_arguments
from rolecall.scheduler.completions import Completions
from rolecall.scheduler.gathering import Sent, agathered, all_sent, gathered, sent
from rolecall.scheduler.keywords import SpecKeywords, StartKeywords
from rolecall.scheduler.lifecycle import log_problems
from rolecall.transport.peer import Peer
from rolecall.types import Job, SchedulingSpec, SchedulingStrategy, Worker, role_and_index

if TYPE_CHECKING:
    from rolecall.scheduler.scheduler import Scheduler

E = TypeVar("E")
P = ParamSpec("P")
Method = Callable[Concatenate[Any, P], R]  # its first parameter is `self`
AsyncMethod = Callable[Concatenate[Any, P], Awaitable[R]]
GeneratorMethod = Callable[Concatenate[Any, P], Iterable[R] | AsyncIterable[R]]
AnyMethod = str | Callable[..., Any]
Errors = list[Exception | None]  # of each worker


def name_of(method: AnyMethod) -> str:
    """The name under which an engine's method is called."""
    if isinstance(method, str):
        return method
    if inspect.isfunction(method):
        return method.__name__
    raise WorkerConfigurationError("no method of an engine", method, "give its name, or its function as Trainer.train")


class EngineView:
    """The engine of a worker, or of all workers of a role, with the methods of its class, called as if it were here."""

    def __init__(self, callee: object, engine: type) -> None:
        self._callee, self._engine = callee, engine

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = inspect.unwrap(getattr(self._engine, name))
        if not callable(method):
            raise AttributeError(f"{name!r} of {self._engine.__name__} is no method; only methods can be called")
        if inspect.iscoroutinefunction(method):
            how = "acall"
        elif inspect.isasyncgenfunction(method):
            how = "astream"
        else:
            how = "stream" if inspect.isgeneratorfunction(method) else "call"
        return partial(getattr(self._callee, how), name)


class Callee:
    """What a role and a worker of it have in common: words for those who take it for the engine."""

    if not TYPE_CHECKING:  # a type checker would take any name for one of theirs

        def __getattr__(self, name: str) -> Any:
            hint = "" if name.startswith("_") else f"; a method of its engine is called by .call({name!r}, ...)"
            raise AttributeError(f"a {type(self).__name__} has no {name!r}{hint}")


class RoleWorker(Callee):
    """One worker of a role."""

    def __init__(self, scheduler: Scheduler, worker_id: str, options: CallOptions) -> None:
        self._scheduler, self.id, self._options = scheduler, worker_id, options

    def __repr__(self) -> str:
        return f"RoleWorker({self.id!r})"

    @property
    def worker(self) -> Worker:
        """Where it is. Raises WorkerFailedError when it died."""
        return self._scheduler.calls.worker(self.id)

    @property
    def peer(self) -> Peer:
        """The conversation with it, which `rolecall.remotize(x, worker=...)` asks for. Raises as `worker`."""
        return self._scheduler.calls.peer(self.id)

    @property
    def alive(self) -> bool:
        """Whether it has not died."""
        return self._scheduler.calls.is_alive(self.id)

    def with_options(self, **options: Unpack[Options]) -> RoleWorker:
        """As `Role.with_options`."""
        return RoleWorker(self._scheduler, self.id, self._options.changed(options))

    @overload
    def create_engine(self, engine: str, *args: Any, **kwargs: Any) -> None: ...
    @overload
    def create_engine(self, engine: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> None: ...
    def create_engine(self, engine: EngineClass, *args: Any, **kwargs: Any) -> None:
        """Makes an engine here."""
        gathered([self.submit_engine(engine, args, kwargs)])

    def destroy_engine(self) -> None:
        """As `Role.destroy_engine`."""
        log_problems(self.id, gathered([self.submit_destroy()])[0])

    def submit_destroy(self) -> PendingCall[Any]:
        return self._scheduler.calls.destroy_engine(self.id, self._options)

    def engine(self, engine: type[E]) -> E:
        """Its engine with the methods of the class, typed: `actors[0].engine(Trainer).train(3)`.

        Methods that are `async` are awaited, generators iterated, and others waited for. It is no such object: it has
        nothing but methods.
        """
        return cast(E, EngineView(self, engine))

    @overload
    def call(self, method: AsyncMethod[P, R], *args: P.args, **kwargs: P.kwargs) -> R: ...
    @overload
    def call(self, method: Method[P, R], *args: P.args, **kwargs: P.kwargs) -> R: ...
    @overload
    def call(self, method: str, *args: Any, **kwargs: Any) -> Any: ...
    def call(self, method: AnyMethod, *args: Any, **kwargs: Any) -> Any:
        """Calls a method, named or as `Trainer.train`, and waits for its result. Ctrl-C gives the call up."""
        return gathered(self._sent(method, args, kwargs), return_errors=self._options.return_errors)[0]

    @overload
    async def acall(self, method: AsyncMethod[P, R], *args: P.args, **kwargs: P.kwargs) -> R: ...
    @overload
    async def acall(self, method: Method[P, R], *args: P.args, **kwargs: P.kwargs) -> R: ...
    @overload
    async def acall(self, method: str, *args: Any, **kwargs: Any) -> Any: ...
    async def acall(self, method: AnyMethod, *args: Any, **kwargs: Any) -> Any:
        """The same, without blocking the event loop."""
        return (await agathered(self._sent(method, args, kwargs), return_errors=self._options.return_errors))[0]

    @overload
    def submit(self, method: AsyncMethod[P, R], *args: P.args, **kwargs: P.kwargs) -> PendingCall[R]: ...
    @overload
    def submit(self, method: Method[P, R], *args: P.args, **kwargs: P.kwargs) -> PendingCall[R]: ...
    @overload
    def submit(self, method: str, *args: Any, **kwargs: Any) -> PendingCall[Any]: ...
    def submit(self, method: AnyMethod, *args: Any, **kwargs: Any) -> PendingCall[Any]:
        """Sends the call and returns its future at once."""
        return self._scheduler.calls.submit(self.id, name_of(method), args, kwargs, self._options)

    def submit_engine(self, engine: EngineClass, args: Sequence[Any], kwargs: dict[str, Any]) -> PendingCall[Any]:
        return self._scheduler.calls.create_engine(self.id, engine, args, kwargs, self._options)

    @overload
    def stream(self, method: GeneratorMethod[P, R], *args: P.args, **kwargs: P.kwargs) -> Iterator[R]: ...
    @overload
    def stream(self, method: str, *args: Any, **kwargs: Any) -> Iterator[Any]: ...
    def stream(self, method: AnyMethod, *args: Any, **kwargs: Any) -> Iterator[Any]:
        """Iterates over what a generator method yields, as it yields it. The call is sent at once.

        It is cancelled when the iterator is closed or dropped, read or not.
        """
        return iter(self._scheduler.calls.stream(self.id, name_of(method), args, kwargs, self._options))

    @overload
    def astream(self, method: GeneratorMethod[P, R], *args: P.args, **kwargs: P.kwargs) -> AsyncIterator[R]: ...
    @overload
    def astream(self, method: str, *args: Any, **kwargs: Any) -> AsyncIterator[Any]: ...
    def astream(self, method: AnyMethod, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        """The same for `async for`."""
        return aiter(self._scheduler.calls.stream(self.id, name_of(method), args, kwargs, self._options))

    def restart(self, *, engines: bool = True) -> None:
        """Starts it again in its slot, whether it died or not. See `Scheduler.restart_worker`."""
        self._scheduler.restart_worker(self.id, engines=engines)

    async def arestart(self, *, engines: bool = True) -> None:
        """The same, without blocking the event loop."""
        await asyncio.to_thread(self.restart, engines=engines)

    def _sent(self, method: AnyMethod, args: Sequence[Any], kwargs: dict[str, Any]) -> list[Sent]:
        if not self._options.return_errors:
            return [self.submit(method, *args, **kwargs)]
        return [sent(lambda w: w.submit(method, *args, **kwargs), self)]

    def stacks(self) -> str:
        """The Python stacks of its threads, read from outside."""
        return self._scheduler.calls.stacks(self.id)


class Role(Callee, Sequence["RoleWorker"]):
    """All workers of a role, or a slice of them. Calls go to every one at the same time and return a list, in order."""

    def __init__(
        self, scheduler: Scheduler, name: str, options: CallOptions | None = None, only: Sequence[str] | None = None
    ) -> None:
        self._scheduler, self.name = scheduler, name
        self._options, self._part = options or CallOptions(), only is not None
        ids, self._borrowed = scheduler.calls.hosts_of(name)
        self._ids = ids if only is None else list(only)

    def __repr__(self) -> str:
        return f"Role({self.name!r}, {', '.join(self._ids) or 'no workers'})"

    def __len__(self) -> int:
        return len(self._ids)

    @overload
    def __getitem__(self, index: int) -> RoleWorker: ...
    @overload
    def __getitem__(self, index: slice) -> Role: ...
    def __getitem__(self, index: int | slice) -> RoleWorker | Role:
        if isinstance(index, slice):
            return self._slice(self._ids[index])
        if not -len(self) <= index < len(self):
            raise IndexError(f"role {self.name!r} has {len(self)} worker(s), none at index {index}")
        return self._worker(self._ids[index])

    def __iter__(self) -> Iterator[RoleWorker]:
        return map(self._worker, self._ids)

    @property
    def alive(self) -> Role:
        """Those of its workers that have not died, as they are now: a role to go on with."""
        return self._slice([w for w in self._ids if self._scheduler.calls.is_alive(w)])

    @property
    def workers(self) -> list[Worker]:
        """Where the workers are. Raises WorkerFailedError when one of them died."""
        return [self._scheduler.calls.worker(worker_id) for worker_id in self._ids]

    def _slice(self, ids: Sequence[str]) -> Role:
        return Role(self._scheduler, self.name, self._options, ids)

    def inspect(self) -> list[WorkerState]:
        """The workers as they are now, the failed ones too: pid, host, devices, state, since when. Nothing is asked."""
        state = self._scheduler.inspect()
        return [state.worker(worker_id) for worker_id in self._ids]

    def with_options(self, **options: Unpack[Options]) -> Role:
        """The same role with other options for its calls, those of `CallOptions`.

        `return_errors` reaches `call`, `map`, `create_engine`, `destroy_engine`, `set_env` and their awaitable forms,
        and of a single worker `call` alone. Other methods raise; futures, completions and streams give errors as ever.
        """
        return Role(self._scheduler, self.name, self._options.changed(options), self._ids if self._part else None)

    @overload
    def create_engine(self, engine: str, *args: Any, **kwargs: Any) -> Errors: ...
    @overload
    def create_engine(self, engine: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> Errors: ...
    def create_engine(self, engine: EngineClass, *args: Any, **kwargs: Any) -> Errors:
        """Makes an engine on every worker, at the same time. Errors as `Scheduler.create_engine`.

        Returns:
            None for each worker, in order; with `return_errors` the error of each that failed.
        """
        return _errors(self._gathered(self._send_each(lambda w: w.submit_engine(engine, args, kwargs))))

    @overload
    async def acreate_engine(self, engine: str, *args: Any, **kwargs: Any) -> Errors: ...
    @overload
    async def acreate_engine(self, engine: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> Errors: ...
    async def acreate_engine(self, engine: EngineClass, *args: Any, **kwargs: Any) -> Errors:
        """The same, without blocking the event loop."""
        return _errors(await self._agathered(self._send_each(lambda w: w.submit_engine(engine, args, kwargs))))

    def engine(self, engine: type) -> EngineView:
        """The engines with the methods of their class: `actors.engine(Trainer).train(3)` is `actors.call("train", 3)`.

        No type checker can know that each method then returns a list; it knows `actors.call(Trainer.train, 3)`, and
        the methods of one worker's engine, `actors[0].engine(Trainer).train(3)`.
        """
        return EngineView(self, engine)

    def destroy_engine(self) -> Errors:
        """Ends the engine of every worker, or that which `with_options(engine=)` names; another can take its name then.

        Its `destroy()` is called where it has one. What that raises is logged, and the engine is gone.
        Returns what `create_engine` does.
        """
        answers = self._gathered(self._send_each(lambda w: w.submit_destroy()))
        for worker_id, problems in zip(self._ids, answers, strict=True):
            if not isinstance(problems, Exception):
                log_problems(worker_id, problems)
        return _errors(answers)

    @overload
    def call(self, method: AsyncMethod[P, R], *args: P.args, **kwargs: P.kwargs) -> list[R]: ...
    @overload
    def call(self, method: Method[P, R], *args: P.args, **kwargs: P.kwargs) -> list[R]: ...
    @overload
    def call(self, method: str, *args: Any, **kwargs: Any) -> list[Any]: ...
    def call(self, method: AnyMethod, *args: Any, **kwargs: Any) -> list[Any]:
        """Calls a method on every worker with the same arguments. Raises the first error, after all have ended.

        The method is named, or given as `Trainer.train`: a type checker then knows its arguments and results.

        When one of them is dead already, none is called; with `return_errors` the others are, and its place holds its
        error. Ctrl-C gives the calls up, see `PendingCall.cancel`.
        """
        return self._gathered(self._called(method, args, kwargs))

    @overload
    async def acall(self, method: AsyncMethod[P, R], *args: P.args, **kwargs: P.kwargs) -> list[R]: ...
    @overload
    async def acall(self, method: Method[P, R], *args: P.args, **kwargs: P.kwargs) -> list[R]: ...
    @overload
    async def acall(self, method: str, *args: Any, **kwargs: Any) -> list[Any]: ...
    async def acall(self, method: AnyMethod, *args: Any, **kwargs: Any) -> list[Any]:
        """The same, without blocking the event loop."""
        return await self._agathered(self._called(method, args, kwargs))

    @overload
    def submit(self, method: AsyncMethod[P, R], *args: P.args, **kwargs: P.kwargs) -> list[PendingCall[R]]: ...
    @overload
    def submit(self, method: Method[P, R], *args: P.args, **kwargs: P.kwargs) -> list[PendingCall[R]]: ...
    @overload
    def submit(self, method: str, *args: Any, **kwargs: Any) -> list[PendingCall[Any]]: ...
    def submit(self, method: AnyMethod, *args: Any, **kwargs: Any) -> list[PendingCall[Any]]:
        """Sends the call to every worker and returns at once, one future each. Raises when one of them is dead."""
        if self._borrowed:  # the engines' names differ
            return self._send(lambda w: w.submit(method, *args, **kwargs))
        return self._scheduler.calls.submit_all(self._ids, name_of(method), args, kwargs, self._options)

    def map(self, method: AnyMethod, arguments: Sequence[tuple[Any, ...]], **kwargs: Any) -> list[Any]:
        """Calls a method on every worker, each with its own tuple of arguments; keywords are the same for all."""
        return self._gathered(self._scatter(method, arguments, kwargs))

    async def amap(self, method: AnyMethod, arguments: Sequence[tuple[Any, ...]], **kwargs: Any) -> list[Any]:
        """The same, without blocking the event loop."""
        return await self._agathered(self._scatter(method, arguments, kwargs))

    def as_completed(
        self, method: AnyMethod, arguments: Iterable[tuple[Any, ...]], *, in_flight: int = 16, **kwargs: Any
    ) -> Completions:
        """Calls a method once with each tuple of arguments, and gives the calls as they end, by `for` or `async for`.

        Each goes to the worker that has the fewest under way. Failed calls are given too, and may be resubmitted.
        Workers that die are left out, and those that come back are used again.

        Args:
            arguments: Taken one by one, when there is room for one more.
            in_flight: How many calls are under way at the same time, over all workers.
            kwargs: The same for all of them.
        """
        if not self._ids:
            raise WorkerConfigurationError("a slice without workers", self.name, "nobody can be called")
        check = partial(self._scheduler.calls.check_living, self._ids)
        return Completions(self, check, method, arguments, kwargs, in_flight)

    def fork(
        self,
        role: str,
        command: str | Sequence[str] | None = None,
        *,
        ready: str | dict[str, Any] | None = None,
        env: dict[str, str] | None = None,
        process_group: bool = False,
    ) -> Role:
        """Starts `role/i` in the slot of this role's worker i. See `Scheduler.fork_workers`."""
        self._refuse_part("forked")
        self._scheduler.fork_workers(role, self.name, command, ready=ready, env=env, process_group=process_group)
        return Role(self._scheduler, role)

    def set_env(self, env: dict[str, str]) -> Errors:
        """Changes the environment of every worker; forks made later see it. Errors as `Scheduler.set_worker_env`.

        Returns what `create_engine` does.
        """
        return _errors(self._gathered(self._send_each(lambda w: self._scheduler.calls.set_env(w.id, env))))

    async def aset_env(self, env: dict[str, str]) -> Errors:
        """The same, without blocking the event loop."""
        return _errors(await self._agathered(self._send_each(lambda w: self._scheduler.calls.set_env(w.id, env))))

    def delete(self, reverse_order: bool = False) -> None:
        """Ends the role and what was forked from it. See `Scheduler.delete_workers`."""
        self._refuse_part("deleted")
        self._scheduler.delete_workers(self.name, reverse_order)

    def _refuse_part(self, what: str) -> None:
        if self._part:
            raise WorkerConfigurationError(f"a slice of role {self.name!r}", self._ids, f"only a whole role is {what}")

    def _scatter(
        self, method: AnyMethod, arguments: Sequence[tuple[Any, ...]], kwargs: dict[str, Any]
    ) -> Sequence[Sent]:
        if len(arguments) != len(self):
            expected = f"one tuple for each of the {len(self)} workers"
            raise WorkerConfigurationError("wrong number of argument tuples", len(arguments), expected)
        for args in arguments:
            check_arguments("map", method, args)
        each = dict(zip(self._ids, arguments, strict=True))
        return self._send_each(lambda w: w.submit(method, *each[w.id], **kwargs))

    def _send(self, submit: Callable[[RoleWorker], PendingCall[Any]]) -> list[PendingCall[Any]]:
        self._scheduler.calls.check_living(self._ids)
        return all_sent(map(submit, self))

    def _called(self, method: AnyMethod, args: Sequence[Any], kwargs: dict[str, Any]) -> Sequence[Sent]:
        if not self._options.return_errors:
            return self.submit(method, *args, **kwargs)
        return self._send_each(lambda w: w.submit(method, *args, **kwargs))

    def _send_each(self, submit: Callable[[RoleWorker], PendingCall[Any]]) -> Sequence[Sent]:
        """As `_send`; with `return_errors` to those that can be asked."""
        if not self._options.return_errors:
            return self._send(submit)
        return [sent(submit, worker) for worker in self]

    def _gathered(self, calls: Sequence[Sent]) -> list[Any]:
        return gathered(calls, return_errors=self._options.return_errors)

    async def _agathered(self, calls: Sequence[Sent]) -> list[Any]:
        return await agathered(calls, return_errors=self._options.return_errors)

    def _worker(self, worker_id: str) -> RoleWorker:
        """A role without workers of its own names its engines after itself on its target's workers."""
        options = self._options
        if self._borrowed and options.engine is None:
            options = options.changed({"engine": f"{self.name}/{role_and_index(worker_id)[1]}"})
        return RoleWorker(self._scheduler, worker_id, options)


def _errors(answers: Sequence[Any]) -> Errors:
    return [answer if isinstance(answer, Exception) else None for answer in answers]


def job_of(role: str, replicas: int, options: StartKeywords) -> Job:
    """The job that keywords describe: fields of one spec for all workers, or `tasks` with one for each."""
    of_spec = SpecKeywords.__optional_keys__
    known = ["replicas", *sorted(StartKeywords.__annotations__, key=lambda name: name in of_spec)]
    for name in options.keys() - set(known):
        near = "".join(f"did you mean {likely!r}? " for likely in difflib.get_close_matches(name, known, 1))
        raise WorkerConfigurationError("unknown option of a start", name, f"{near}there are {', '.join(known)}")
    fields: dict[str, Any] = {name: value for name, value in options.items() if name in of_spec}
    if (tasks := options.get("tasks")) is not None and fields:
        raise WorkerConfigurationError("both tasks and fields of a spec", sorted(fields), "give one of the two")
    target, fork = options.get("target"), options.get("fork", True)
    if not fork and target is None:
        raise WorkerConfigurationError(
            "fork=False without target=", None, "name the role whose workers host its engines"
        )
    strategy = SchedulingStrategy("colocation", target, fork) if target else SchedulingStrategy()
    return Job(role, replicas, tasks or [SchedulingSpec(**fields)], strategy, options.get("process_group", False))
