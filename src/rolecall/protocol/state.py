"""A run as a value: what `Scheduler.inspect()` returns, and what `state.json` of the run directory holds."""

from __future__ import annotations

from typing import Literal

from rolecall.errors import WorkerNotFoundError
from rolecall.protocol.message import Message


class WorkerState(Message, frozen=True, kw_only=True):
    """A worker as the controller knew it last.

    Attributes:
        pid: Of its process on its host.
        guard: Id of the guard that owns it.
        devices: Its slot's, as the visible-devices variable names them.
        target: For a fork the worker in whose slot it lives.
        state: `running`, `ending` (it is being deleted) or `failed`.
        since: When it became ready, in seconds since the epoch.
        incarnation: How often it was restarted.
        command: Its program; None when it runs none of the user's.
        log: Path of its log on its host.
        timeline: Seconds from the request to its guard until it was forked, connected and ready.
    """

    id: str
    ip: str = ""
    ports: list[str] = []
    pid: int = 0
    host: str = ""
    guard: str = ""
    devices: list[str] = []
    target: str | None = None
    command: list[str] | None = None
    log: str = ""
    state: Literal["running", "ending", "failed"] = "running"
    since: float = 0.0
    incarnation: int = 0
    timeline: dict[str, float] = {}


class RoleState(Message, frozen=True, kw_only=True):
    """A role. `target`: the role in whose slots it lives."""

    name: str
    target: str | None = None
    workers: list[WorkerState] = []


class GuardState(Message, frozen=True, kw_only=True):
    """A guard. All but `id` is what it said of itself when it connected, and empty before.

    Attributes:
        host: Name of its host.
        host_id: Identity of its host (boot and namespaces), which names do not give.
        ip: Address under which its workers are reached.
        devices: Accelerators that it was given, as the visible-devices variable names them.
        python: Version and path of its interpreter.
    """

    id: str
    pid: int = 0
    host: str = ""
    host_id: str = ""
    ip: str = ""
    devices: list[str] = []
    python: str = ""


class ControllerState(Message, frozen=True, kw_only=True):
    """The controller.

    Attributes:
        addresses: Where it listens, its Unix socket first.
        ended: It has ended its run.
    """

    pid: int = 0
    host: str = ""
    addresses: list[str] = []
    ended: bool = False


class RunState(Message, frozen=True, kw_only=True):
    """A run. `run_id` is empty as long as the controller has written nothing.

    Attributes:
        waiting: By role that is being started, what a cluster's manager says of its allocation.
    """

    run_id: str = ""
    runtime_dir: str = ""
    experiment: str = ""
    trial: str = ""
    scheduler: str = ""
    controller: ControllerState = ControllerState()
    guards: list[GuardState] = []
    roles: list[RoleState] = []
    waiting: dict[str, str] = {}

    def workers(self) -> list[WorkerState]:
        """Each worker once; a role that borrows its target's workers has none of its own."""
        return list({worker.id: worker for role in self.roles for worker in role.workers}.values())

    def worker(self, worker_id: str) -> WorkerState:
        """One of them.

        Raises:
            WorkerNotFoundError: No such worker.
        """
        found = {worker.id: worker for worker in self.workers()}
        if worker_id not in found:
            raise WorkerNotFoundError(worker_id, list(found))
        return found[worker_id]
