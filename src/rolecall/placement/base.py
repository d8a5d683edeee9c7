"""What a backend is: a `Placement`, which brings up guards on hosts for a scheduler and ends them again.

It knows nothing of workers' processes, calls and tensors. It is given a `PlacementContext`, and each guard that it has
started connects to the controller by itself.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import ClassVar, NamedTuple, Protocol

from rolecall.errors import GuardLostError, WorkerCreationError
from rolecall.placement.outside import Finding, Left, Removal
from rolecall.placement.plan import Plan
from rolecall.protocol.guard_config import GuardConfig
from rolecall.protocol.state import GuardState, RunState
from rolecall.transport.loop import IOThread
from rolecall.types import Job


class ExpectedGuard(Protocol):
    """A guard that will connect, or has.

    Attributes:
        state: What it said of itself when it connected; empty before.
        connected: Whether it has, though it may be lost since.
        lost: Why it is gone; None while it lives.
    """

    guard_id: str
    state: GuardState
    connected: bool
    lost: GuardLostError | None

    def wait(self, timeout: float) -> bool:
        """Waits until it has connected or was lost; says whether it is there."""

    def check(self) -> None:
        """Raises GuardLostError once it is lost."""


class Explain(Protocol):
    """Asks why a guard, or what it owned, has ended.

    `then` is called once, on the I/O thread, within `limit_s` seconds, with the reason, empty where none is known.
    `patient`: it has ended for sure, so whoever may know is given time to notice.
    """

    def __call__(self, guard: ExpectedGuard, then: Callable[[str], None], *, patient: bool, limit_s: float) -> None: ...


class PlacementContext(Protocol):
    """The run, as far as a placement needs it.

    Attributes:
        run_dir: Logs go to `run_dir/logs`.
        start_timeout: Seconds within which guards must have connected once their hosts are there.
        grace_s: Seconds between SIGTERM and SIGKILL when workers are ended.
        io: Where the controller's conversations take place.
        addresses: Where the controller listens, its Unix socket first.
        closing: Whether the run is being ended.
    """

    run_id: str
    experiment: str
    run_dir: Path
    start_timeout: float
    grace_s: float
    io: IOThread
    addresses: list[str]

    @property
    def closing(self) -> bool: ...

    def guard_config(self, guard_id: str, *, ip: str = "") -> GuardConfig:
        """The configuration of a guard, the run's token in it.

        Args:
            ip: Address of the guard's host; empty where only the guard can know.
        """

    def expect(self, guard_id: str, explain: Explain | None = None) -> ExpectedGuard:
        """Announces a guard: one that nobody has announced is refused.

        Args:
            explain: Who knows why it ended, if anybody does.
        """

    def waits(self, role: str, what: str) -> None:
        """Shows in the run's state what a role waits for; "" when it no longer does."""

    def forget(self, guard: ExpectedGuard) -> None:
        """Hangs up on a guard that is ended, or was never started."""

    def shut_down(self, guards: Sequence[ExpectedGuard], grace_s: float) -> None:
        """Has guards end their workers and themselves, all at once, as far as they answer. Bounded."""

    def listen(self, ip: str) -> None:
        """Listens on an address of this host too, for guards on other hosts.

        Raises:
            WorkerConfigurationError: It is no address of this host.
        """


class Placed(NamedTuple):
    """A role whose guards are there. `guards[i]` is the id of the guard that owns slot i of the plan."""

    plan: Plan
    guards: Sequence[str]


class Placement(ABC):
    """A backend. Its constructor takes its options by keyword, checks them and starts nothing.

    Attributes:
        name: In the run's state, for those who end it from outside.
        further_options: Keywords that the constructor takes beside those that it names.
        starts_processes: Its guards and workers are processes, so at the end of a run this host is swept for them.
        n_gpus_per_node: Devices of a host; known once it is open.
        device_variable: The visible-devices variable of its workers; empty for that of each host's own kind of devices.
        taken: A scheduler has it; another one cannot.
    """

    name: ClassVar[str]
    further_options: ClassVar[Sequence[str]] = ()
    starts_processes: ClassVar[bool] = True
    n_gpus_per_node: int = 0
    device_variable: str = ""
    taken: bool = False

    @abstractmethod
    def open(self, context: PlacementContext) -> None:
        """Starts what is needed from the beginning of a run, or raises and leaves nothing. Called once."""

    @abstractmethod
    def plan(self, job: Job) -> Plan:
        """What `place(job)` would give; takes and starts nothing.

        Raises:
            GPUAllocationError: More devices than are free.
        """

    @abstractmethod
    def place(self, job: Job) -> Placed:
        """Takes slots for a role and returns when the guards that own them have connected.

        Whatever it raises, `release` is called for the role. Several roles may be placed at the same time.
        """

    def replace_guard(self, role: str) -> str:
        """Brings up a guard in the place of one that was lost with a role's workers; returns its id.

        Raises:
            WorkerCreationError: The backend cannot: the place itself was lost.
        """
        reason = "its guard is lost, and with it the slots of its workers; delete the role and start it again"
        raise WorkerCreationError(role, reason)

    @abstractmethod
    def release(self, role: str) -> None:
        """Gives back what `place` took, and ends guards that were placed for this role alone. May be called twice."""

    @abstractmethod
    def close(self, *, graceful: bool) -> None:
        """Ends every guard and sees it gone. Not graceful gives workers no time between SIGTERM and SIGKILL."""

    # What the command line asks without a run of its own: of a backend whose hosts are not this one.

    @classmethod
    def end_left(cls, run_id: str, state: RunState) -> Removal:
        """Ends what a run has left with the backend's manager.

        Args:
            state: The run's, empty where it is not known.
        """
        return Removal()

    @classmethod  # noqa: B027 - most have none
    def clean(cls, run_id: str) -> None:
        """Removes files of a run, none of whose processes is left on this host."""

    @classmethod
    def left(cls) -> Iterable[Left]:
        """What runs of this user hold with the backend's manager."""
        return ()

    @classmethod
    def findings(cls) -> Iterable[Finding]:
        """Whether the backend can be used from this host."""
        return ()
