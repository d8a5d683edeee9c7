"""The error tree. It imports nothing, so that every layer may raise from it.

    RolecallError
    ├── SchedulerError
    │   ├── WorkerCreationError         workers could not be started; the start was rolled back
    │   ├── WorkerConfigurationError    a job or an option is wrong
    │   ├── WorkerFailedError           a worker died (exit code or signal, log tail)
    │   │   └── WorkerStalledError      a worker's process exists but makes no progress (stacks attached)
    │   ├── WorkerNotFoundError         no such role or worker
    │   ├── WorkerTimeoutError          a deadline passed
    │   ├── EngineCreationError         an engine's class or constructor failed
    │   ├── EngineCallError             an engine's method raised
    │   │   └── EngineNotFoundError     no engine of that name
    │   │       └── MethodNotFoundError the engine has no public method of that name
    │   ├── EngineImportError           an engine's path cannot be imported or is refused
    │   ├── PortAllocationError         too few free ports
    │   ├── GPUAllocationError          more devices asked for than are free
    │   ├── GuardLostError              a guard died or cannot be reached
    │   └── SlurmError                  a command of Slurm failed, or is not installed
    ├── RPCError
    │   ├── RPCConnectionError          the connection is lost for good
    │   ├── ProtocolError               a frame is oversize, malformed or inconsistent
    │   ├── AuthenticationError         the token is missing or wrong
    │   ├── CallCancelledError          the call was cancelled
    │   ├── RemoteError                 replaces an exception whose type is not serializable
    │   └── CodecError
    │       ├── EncodeError             a value that is not serializable (with its place)
    │       └── DecodeError             bytes that are not a valid encoded value
    └── TensorError
        ├── ShardNotFoundError          the shard was freed, or its owner has ended
        └── ShardExistsError            a shard of that id is stored already

Constructors take facts, not sentences. Every error keeps its facts as attributes and survives pickling, because
`RolecallError.__reduce__` rebuilds it from the constructor's arguments.
"""

from __future__ import annotations

import errno as _errno
import re as _re
import signal as _signal
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import CancelledError as _CancelledError
from contextlib import contextmanager as _contextmanager
from functools import partial
from typing import Any

_CONTROL = _re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def printable(text: str) -> str:
    """Text of another process for a terminal, to which escape sequences could do what they like: they are shown."""
    return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


class RolecallError(Exception):
    """Base of all errors that this package raises deliberately.

    Attributes:
        facts: Positional and keyword arguments of the constructor, from which the codec makes a copy elsewhere.
    """

    facts: tuple[tuple[Any, ...], dict[str, Any]]

    def __new__(cls, *args: Any, **kwargs: Any) -> RolecallError:
        self = super().__new__(cls, *args)
        self.facts = (args, kwargs)
        return self

    def __str__(self) -> str:
        return printable(super().__str__())

    def __reduce__(self) -> tuple[Any, ...]:
        args, kwargs = self.facts
        return partial(type(self), *args, **kwargs), ()


_ROOM = "make room in the run directory and in the temporary one (TMPDIR, else /tmp); `df` and `df -i` show where"
# What to do where the system has no more to give, by the number of the error.
SHORTAGES = {
    _errno.EMFILE: "raise the limit of open files (`ulimit -n`), or start fewer workers on a host",
    _errno.ENFILE: "raise the host's fs.file-max, or start fewer workers on it",
    _errno.EAGAIN: "raise the limit of processes (`ulimit -u`, a cgroup's pids.max) or of memory (`ulimit -v`), or "
    "start fewer workers on a host",
    _errno.ENOMEM: "raise the limit of memory (`ulimit -v`), or start fewer workers on a host",
    _errno.ENOSPC: _ROOM,
    _errno.EDQUOT: _ROOM,
    _errno.EFBIG: "raise the limit of a file's size (`ulimit -f`)",
}


def remedy(error: BaseException | None) -> str:
    """What to do where the system has no more to give; empty for other errors."""
    if isinstance(error, MemoryError):
        return SHORTAGES[_errno.ENOMEM]
    return SHORTAGES.get(error.errno or 0, "") if isinstance(error, OSError) else ""


def explained(error: BaseException) -> str:
    """An error's message, with what to do where the system has no more to give."""
    return "; ".join(filter(None, (str(error) or type(error).__name__, remedy(error))))


def told(where: str, error: Exception) -> Exception:
    """An error of a system that has no more to give as one that says what to do; others as they are."""
    message = f"{where}: {str(error) or type(error).__name__}"
    return WorkerConfigurationError(message, None, remedy(error)) if remedy(error) else error


@_contextmanager
def shortages_told(where: str) -> Iterator[None]:
    """Raises what `told` makes of an error."""
    try:
        yield
    except (OSError, MemoryError) as error:
        if remedy(error):
            raise told(where, error) from error
        raise


def describe_exit(exit_code: int | None = None, signal: int | None = None) -> str:
    """How a process ended: `exit code 3`, `killed by SIGKILL`, or `ended` when neither is known."""
    if signal is not None:
        try:
            return f"killed by {_signal.Signals(signal).name}"
        except ValueError:
            return f"killed by signal {signal}"
    return f"exit code {exit_code}" if exit_code is not None else "ended"


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"


class SchedulerError(RolecallError):
    """Base of the errors of workers and engines."""


class WorkerCreationError(SchedulerError):
    """Workers of a role could not be started. The start was rolled back: none of the role's workers is left running.

    Args:
        role: Name of the role.
        reason: What happened, in one sentence.
        failed: Indices of the workers that failed.
        log_tails: Last lines of the failed workers' logs by index.
    """

    def __init__(
        self, role: str, reason: str, failed: Sequence[int] = (), log_tails: dict[int, str] | None = None
    ) -> None:
        self.role, self.reason, self.failed, self.log_tails = role, reason, list(failed), dict(log_tails or {})
        where = f" (failed: {', '.join(f'{role}/{i}' for i in self.failed)})" if self.failed else ""
        tails = "".join(f"\n--- log of {role}/{i} ---\n{t.rstrip()}" for i, t in self.log_tails.items() if t.strip())
        super().__init__(f"role {role!r} was not started{where}: {reason}{tails}")


class WorkerConfigurationError(SchedulerError):
    """A job, a role or an option is wrong. Nothing was started.

    Args:
        what: What is wrong.
        seen: The wrong value, or None.
        expected: Which values are right, or what to do.
    """

    def __init__(self, what: str, seen: Any = None, expected: str = "") -> None:
        self.what, self.seen, self.expected = what, seen, expected
        message = what if seen is None else f"{what}: {seen!r}"
        super().__init__(f"{message}; {expected}" if expected else message)


class WorkerFailedError(SchedulerError):
    """A worker died. Its pending calls fail with this error at once.

    The last lines of its log are logged once, by the controller, and are not repeated in the message.

    Attributes:
        exit_code: Exit status, or None when it was killed or the status is unknown.
        signal: Number of the signal that killed it, or None.
        log_tail: The end of its log, up to 4 KiB.
        reason: More about the cause where it is known, for instance `out of memory: 31.8 of 32 GiB`.
        stopped_by: Who ended it on purpose (`rolecall stop`, a restart), or "".
    """

    def __init__(
        self,
        worker_id: str,
        exit_code: int | None = None,
        signal: int | None = None,
        log_tail: str = "",
        *,
        host: str = "",
        pid: int | None = None,
        reason: str = "",
        log_path: str = "",
        stopped_by: str = "",
    ) -> None:
        self.worker_id, self.exit_code, self.signal, self.log_tail = worker_id, exit_code, signal, log_tail
        self.host, self.pid, self.reason, self.log_path, self.stopped_by = host, pid, reason, log_path, stopped_by
        place = f" (pid {pid} on {host or 'this host'})" if pid else ""
        super().__init__(f"worker {worker_id}{place} {self._how()}")

    def _how(self) -> str:
        why = f" ({self.reason})" if self.reason else ""
        died = f"died: {describe_exit(self.exit_code, self.signal)}{why}"
        how = f"was stopped by {self.stopped_by}" if self.stopped_by else died
        return f"{how}; log: {self.log_path}" if self.log_path else how

    @property
    def report(self) -> str:
        """The message with the last ten lines of its log, unless it was stopped."""
        lines = [] if self.stopped_by else self.log_tail.rstrip().splitlines()[-10:]
        told = ["--- last lines of its log ---", *map(printable, lines)] if lines else []
        return "\n".join([str(self), *told])


class WorkerStalledError(WorkerFailedError):
    """A worker's process exists but makes no progress: it is stopped by a signal, for instance.

    Attributes:
        stacks: Python stacks of its threads, as far as another process could read them; may be empty.
    """

    def __init__(
        self, worker_id: str, reason: str = "", stacks: str = "", *, host: str = "", pid: int | None = None
    ) -> None:
        self.stacks = stacks
        super().__init__(worker_id, host=host, pid=pid, reason=reason)

    def _how(self) -> str:
        return f"makes no progress: {self.reason}"

    @property
    def report(self) -> str:
        """The message with the stacks."""
        return f"{self}\n--- stacks ---\n{printable(self.stacks.rstrip())}" if self.stacks else str(self)


class WorkerNotFoundError(SchedulerError):
    """There is no role or worker of that name.

    Args:
        name: The role or worker id that was looked up.
        known: The existing names.
    """

    def __init__(self, name: str, known: Iterable[str] = ()) -> None:
        self.name, self.known = name, list(known)
        kind = "worker" if "/" in name else "role"
        super().__init__(f"no {kind} {name!r} (running: {_listed(self.known)})")


class WorkerTimeoutError(SchedulerError):
    """A deadline passed while waiting for a worker or a call. The work itself may still be running.

    Args:
        worker_id: The worker that was waited for.
        timeout: The deadline, in seconds.
        what: What was waited for.
        hint: What to do.
    """

    def __init__(self, worker_id: str, timeout: float, what: str = "answer", hint: str = "") -> None:
        self.worker_id, self.timeout, self.what, self.hint = worker_id, timeout, what, hint
        super().__init__(f"{worker_id}: no {what} within {timeout:g} s" + (f"; {hint}" if hint else ""))


class EngineCreationError(SchedulerError):
    """An engine could not be created: its name is taken, or its constructor raised."""

    def __init__(self, worker_id: str, engine: str, reason: str, traceback: str = "") -> None:
        self.worker_id, self.engine, self.reason, self.traceback = worker_id, engine, reason, traceback
        remote = f"\n--- traceback on {worker_id} ---\n{traceback.rstrip()}" if traceback else ""
        super().__init__(f"{worker_id}: engine {engine!r} was not created: {reason}{remote}")


class EngineCallError(SchedulerError):
    """An engine's method raised.

    Attributes:
        remote_type: Full name of the remote exception's type, for instance `builtins.ValueError`.
        remote_message: Its text.
        traceback: The traceback on the worker.
    """

    def __init__(
        self, worker_id: str, method: str, remote_type: str = "", remote_message: str = "", traceback: str = ""
    ) -> None:
        self.worker_id, self.method = worker_id, method
        self.remote_type, self.remote_message, self.traceback = remote_type, remote_message, traceback
        super().__init__(self._sentence())

    def _sentence(self) -> str:
        remote = f"\n--- traceback on {self.worker_id} ---\n{self.traceback.rstrip()}" if self.traceback else ""
        return f"{self.worker_id}: {self.method}() raised {self.remote_type}: {self.remote_message}{remote}"


class EngineNotFoundError(EngineCallError):
    """The worker has no engine of that name. Nothing was run."""

    def __init__(self, worker_id: str, method: str, missing: str, known: Iterable[str] = ()) -> None:
        self.missing, self.known = missing, list(known)
        super().__init__(worker_id, method)

    def _sentence(self) -> str:
        hint = "" if self.known else "; create one with create_engine first"
        return f"{self.worker_id}: {self.method}() was not run: no {self.missing} (known: {_listed(self.known)}){hint}"


class MethodNotFoundError(EngineNotFoundError):
    """The engine has no public method of that name. Nothing was run."""


class EngineImportError(SchedulerError):
    """An engine's path cannot be imported, does not name a class, or names a class that is refused."""

    def __init__(self, path: str, reason: str) -> None:
        self.path, self.reason = path, reason
        super().__init__(f"engine {path!r}: {reason}")


class PortAllocationError(SchedulerError):
    """Too few free ports in the range from which workers' ports are leased.

    Args:
        wanted: Number of ports requested.
        low: First port of the range.
        high: Last port of the range.
        reason: More about the cause.
    """

    def __init__(self, wanted: int, low: int, high: int, reason: str = "") -> None:
        self.wanted, self.low, self.high, self.reason = wanted, low, high, reason
        super().__init__(
            f"{wanted} port(s) wanted, fewer are free between {low} and {high}"
            + (f" ({reason})" if reason else "")
            + "; end other runs on this host (`rolecall doctor` lists them) or widen the range"
        )


class GPUAllocationError(SchedulerError):
    """More devices were requested than are free.

    Args:
        wanted: Number of devices requested.
        free: The free devices.
        holders: The devices that each worker holds.
        advice: What to do; by default what helps on one host.
    """

    def __init__(
        self,
        wanted: int,
        free: Sequence[str] = (),
        holders: dict[str, list[str]] | None = None,
        advice: str = "",
    ) -> None:
        self.wanted, self.free, self.holders, self.advice = wanted, list(free), dict(holders or {}), advice
        held = "; ".join(f"{holder} holds {_listed(devices)}" for holder, devices in self.holders.items())
        if not advice:
            advice = "ask for fewer, delete a role, or set oversubscribe=True"
            if not self.free and not self.holders:
                advice = "no devices were found on this host; ask for none, or list them with devices=[...]"
        super().__init__(
            f"{wanted} device(s) wanted, {len(self.free)} free" + (f" ({held})" if held else "") + f"; {advice}"
        )


class GuardLostError(SchedulerError):
    """A guard died or cannot be reached. All workers that it owned have ended or are ending."""

    def __init__(self, guard: str, host: str = "", pid: int | None = None, reason: str = "") -> None:
        self.guard, self.host, self.pid, self.reason = guard, host, pid, reason
        place = f" (pid {pid} on {host or 'this host'})" if pid else ""
        super().__init__(f"guard {guard}{place} was lost: {reason or 'its connection closed'}")


class SlurmError(SchedulerError):
    """A Slurm command cannot be run, failed, or printed something unexpected.

    Attributes:
        command: The command with its arguments.
        seen: Its output, or how it failed.
        advice: What to do.
    """

    def __init__(self, command: str, seen: str, advice: str = "") -> None:
        self.command, self.seen, self.advice = command, seen, advice
        super().__init__(f"`{command}`: {seen}" + (f"; {advice}" if advice else ""))


class RPCError(RolecallError):
    """Base of the errors of communication between two processes."""


class RPCConnectionError(RPCError):
    """The connection to a process was lost and could not be restored."""

    def __init__(self, peer: str, reason: str = "") -> None:
        self.peer, self.reason = peer, reason
        super().__init__(f"connection to {peer} lost" + (f": {reason}" if reason else ""))


class ProtocolError(RPCError):
    """A frame is oversize, malformed or inconsistent. The connection that it came from was closed."""

    def __init__(self, what: str, seen: Any = None, limit: Any = None) -> None:
        self.what, self.seen, self.limit = what, seen, limit
        seen_text = "" if seen is None else f": {seen!r}"
        limit_text = "" if limit is None else f" (limit {limit!r})"
        super().__init__(f"{what}{seen_text}{limit_text}")


class AuthenticationError(RPCError):
    """The run's token is missing or wrong."""

    def __init__(self, peer: str = "", seen: str = "missing") -> None:
        self.peer, self.seen = peer, seen
        super().__init__(
            f"{peer + ': ' if peer else ''}the run's token is {seen}; send it as `Authorization: Bearer <token>` "
            "(it is in the file `token` of the run's private directory)"
        )


class CallCancelledError(RPCError, _CancelledError):
    """The call was cancelled before it returned. It is a `concurrent.futures.CancelledError` too."""

    def __init__(self, peer: str = "", method: str = "") -> None:
        self.peer, self.method = peer, method
        super().__init__(f"{peer}: {method}() was cancelled")


class InternalError(RPCError):
    """The process that was asked has a bug of ours; the request itself was in order.

    Attributes:
        where: The process, for instance a worker's id.
        method: What was asked for.
        error_type: Full name of the exception's type; its traceback is in the log of that process.
        message: Its text.
    """

    def __init__(self, where: str, method: str, error_type: str, message: str = "") -> None:
        self.where, self.method, self.error_type, self.message = where, method, error_type, message
        super().__init__(
            f"{where}: internal error in {method!r} ({error_type}: {message}); this is a bug in rolecall, please "
            f"report it with the traceback in the log of {where}"
        )


class RemoteError(RPCError):
    """Replaces an exception of another process whose type or state is not serializable.

    Attributes:
        remote_type: Full name of the exception's type, for instance `vllm.exceptions:EngineDeadError`.
        remote_message: Its message.
        traceback: Its traceback in that process, or "".
    """

    def __init__(self, remote_type: str, remote_message: str = "", traceback: str = "") -> None:
        self.remote_type, self.remote_message, self.traceback = remote_type, remote_message, traceback
        super().__init__(f"{remote_type}: {remote_message}" if remote_message else remote_type)


class CodecError(RPCError):
    """Base of the errors of serialization."""


class EncodeError(CodecError):
    """A value is not serializable.

    Args:
        place: Its place in the arguments or the result, for instance `args[1].config.fn`.
        type_name: Its type.
        hint: What to do instead.
    """

    def __init__(self, place: str, type_name: str, hint: str = "") -> None:
        self.place, self.type_name, self.hint = place, type_name, hint
        super().__init__(f"{place}: a value of type {type_name} is not serializable" + (f"; {hint}" if hint else ""))


class DecodeError(CodecError):
    """Bytes are not a valid encoded value, or name a type that is refused."""

    def __init__(self, what: str, seen: Any = None) -> None:
        self.what, self.seen = what, seen
        super().__init__(what if seen is None else f"{what}: {seen!r}")


class TensorError(RolecallError):
    """Base of the errors of handles and shards."""


class ShardNotFoundError(TensorError):
    """Shards were freed, or the worker that owned them has ended."""

    def __init__(self, shard_ids: Sequence[str], owner: str = "", reason: str = "") -> None:
        self.shard_ids, self.owner, self.reason = list(shard_ids), owner, reason
        some = ", ".join(self.shard_ids[:5]) + (" ..." if len(self.shard_ids) > 5 else "")
        super().__init__(
            f"{len(self.shard_ids)} shard(s) not on {owner or 'their owner'} ({some})"
            + (f": {reason}" if reason else "; they were cleared, or their scope has ended")
        )


class ShardExistsError(TensorError):
    """A shard of that id is stored already, and shards never change."""

    def __init__(self, shard_id: str, owner: str = "") -> None:
        self.shard_id, self.owner = shard_id, owner
        super().__init__(
            f"{owner} has a shard {shard_id} already, and shards never change; clear it, or use another id"
        )
